"""Searches products with BM25 as WebShop's search engine does, implemented with `bm25s`.

The reference uses Lucene through Pyserini: BM25 with k1 = 0.9 and b = 0.4, the English analyzer (Unicode word
boundaries, possessive 's removed, 33 stop words, Porter stems), the best 50 results, equal scores in catalogue order.
Rankings differ where Lucene rounds a document's length to one byte; docs/reference/webshop.md has the measured
agreement.
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
from paw_fast.envs.webshop.product_store import cache_errors
from paw_fast.envs.webshop.records import Product
from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs import stop_signals

NUM_RESULTS = 50
_CACHED_QUERIES = 4096

# Letters and digits, joined by an apostrophe, full stop, colon or comma where Unicode's word rules (UAX 29) join them.
_WORD = re.compile(r"\w+(?:[.'’·:](?<=[^\W\d_].)(?=[^\W\d_])\w+|[.,'’;](?<=\d.)(?=\d)\w+)*")
_POSSESSIVE = ("'s", "’s", "＇s")


@lru_cache(maxsize=64)
def require(*modules: str) -> None:
    """Raises `UserError` naming the extra `webshop` if one of the modules is not installed."""
    import importlib.util

    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--env webshop needs {', '.join(missing)}: {install_hint('webshop')}")


def make_analyzer() -> Callable[[str], list[str]]:
    """Returns a function from text to stemmed words, equivalent to Lucene's English analyzer. Needs PyStemmer."""
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

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs builds at DEBUG regardless of the root's level
    return bm25s


def document(product: Product) -> str:
    """The indexed text of a product: title, description, first bullet, options."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    first = product.bullets[0] if product.bullets else ""
    return " ".join((product.title, product.description, first, options)).lower()


def build_index(products: Iterable[Product], folder: Path, name: str = "the catalogue") -> None:
    """Builds the index of a catalogue and saves it in `folder`; `name` is the catalogue's name in errors."""
    bm25s = _bm25s()
    analyze, vocabulary = make_analyzer(), {}
    # Arrays of 4-byte ids: lists of Python integers would need ten times the memory on the full catalogue.
    corpus = [
        np.frombuffer(array("i", [vocabulary.setdefault(w, len(vocabulary)) for w in analyze(document(p))]), np.int32)
        for p in stop_signals.checked(products)
    ]
    if not vocabulary:
        raise UserError(f"{name}: its products contain no searchable words")
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index((corpus, vocabulary), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)


class SearchEngine:
    """Ranks the rows of a catalogue for a query. The index is memory-mapped; results are cached by query."""

    def __init__(self, folder: Path) -> None:
        bm25s = _bm25s()
        with cache_errors(folder.parent):
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
