"""WebShop's search engine: BM25 over product texts with the reference's constants, in `bm25s`.

The reference is Lucene through Pyserini: BM25 with k1 = 0.9, b = 0.4, its English analyzer (words by Unicode's rules,
possessive 's removed, 33 stop words, Porter stems), the best 50, equal scores in the catalogue's order. The ranking
differs where Lucene rounds a document's length to one byte (docs/webshop.md has the agreement).
"""

from __future__ import annotations

import logging
import re
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from paw_fast.envs.lucene import K1, STOP_WORDS, B
from paw_fast.envs.webshop.product_store import undamaged
from paw_fast.envs.webshop.records import Product
from paw_fast.errors import UserError
from paw_fast.runs import stop_signals

NUM_RESULTS = 50
_CACHED_QUERIES = 4096

# Letters and digits, joined by an apostrophe, full stop, colon or comma where Unicode's word rules (UAX 29) join them.
_WORD = re.compile(r"\w+(?:[.'’·:](?<=[^\W\d_].)(?=[^\W\d_])\w+|[.,'’;](?<=\d.)(?=\d)\w+)*")
_POSSESSIVE = ("'s", "’s", "＇s")


@lru_cache(maxsize=64)
def require(*modules: str) -> None:
    """Raises `UserError` naming the extra when one of the modules is not installed."""
    import importlib.util

    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--env webshop needs {', '.join(missing)}: pip install 'paw-fast[webshop]'")


def make_analyzer() -> Callable[[str], list[str]]:
    """A function from text to stemmed words, as Lucene's English analyzer gives them. Needs PyStemmer."""
    require("Stemmer")
    import Stemmer

    stem = Stemmer.Stemmer("porter").stemWord

    def analyze(text: str) -> list[str]:
        found = []
        for word in _WORD.findall(text.lower()):
            if word.endswith(_POSSESSIVE):
                word = word[:-2]
            if word and word not in STOP_WORDS:
                found.append(stem(word) if len(word) > 2 else word)  # Lucene leaves one and two letters alone
        return found

    return analyze


def _bm25s() -> Any:
    require("bm25s", "Stemmer")
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every build at DEBUG, whatever the root says
    return bm25s


def document(product: Product) -> str:
    """The text that is searched: title, description, first bullet, options."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    first = product.bullets[0] if product.bullets else ""
    return " ".join((product.title, product.description, first, options)).lower()


def build_index(products: Iterable[Product], folder: Path, name: str = "the catalogue") -> None:
    """Builds the index of a catalogue and saves it in `folder`; errors call the catalogue `name`."""
    bm25s = _bm25s()
    analyze, vocabulary = make_analyzer(), {}
    # Arrays of 4-byte ids: lists of Python integers would take ten times the memory on the full catalogue.
    corpus = [
        np.frombuffer(array("i", [vocabulary.setdefault(w, len(vocabulary)) for w in analyze(document(p))]), np.int32)
        for p in stop_signals.checked(products)
    ]
    if not vocabulary:
        raise UserError(f"{name}: its products have no word that can be searched")
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index((corpus, vocabulary), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)


class SearchEngine:
    """Ranks rows of the catalogue for a query. The index is memory-mapped; results are cached by query."""

    def __init__(self, folder: Path) -> None:
        bm25s = _bm25s()
        with undamaged(folder.parent):
            self._index: Any = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        self._vocabulary: dict[str, int] = self._index.vocab_dict
        self._analyze = make_analyzer()
        self._cache: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def __call__(self, query: str) -> Sequence[int]:
        """Rows of at most 50 products that share a word with the query, best first."""
        rows = self._cache.get(query)
        if rows is None:
            rows = self._cache[query] = self._search(query)
            if len(self._cache) > _CACHED_QUERIES:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(query)
        return rows

    def _search(self, query: str) -> tuple[int, ...]:
        ids = [self._vocabulary[word] for word in self._analyze(query) if word in self._vocabulary]
        if not ids:
            return ()
        scores = self._index.get_scores_from_ids(ids)
        count = min(NUM_RESULTS, len(scores))
        least = np.partition(scores, -count)[-count]
        rows = np.flatnonzero(scores >= max(least, np.finfo(np.float32).tiny))
        order = np.lexsort((rows, -scores[rows]))[:NUM_RESULTS]
        return tuple(int(row) for row in rows[order])
