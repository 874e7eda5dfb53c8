"""Builds and searches memory-mapped BM25 indexes.

Text analysis follows Search-R1's Lucene index: lower case, words of two or more letters or digits, Lucene's 33 stop
words, Porter's stemmer; scores use bm25s' method `lucene` with k1 = 0.9 and b = 0.4. Scripts without spaces between
words (Chinese, Japanese, Thai and others), and Korean, are indexed by single characters and character pairs.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paw_fast.envs.json_files import DataIssues
from paw_fast.envs.lucene import K1, STOP_WORDS, B
from paw_fast.envs.search_qa.retrieval import store
from paw_fast.envs.search_qa.retrieval.corpus import read_corpus
from paw_fast.envs.search_qa.retrieval.records import Hit, Passage
from paw_fast.errors import UserError
from paw_fast.extras import install_hint

PASSES = 4
"""Over the passages in a build: ours, and three of bm25s."""
ANALYZER_VERSION = 2
"""Part of the cache key: increment it when the words of a text change."""
_WORD = re.compile(r"\w\w+")
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c) in ("Mn", "Mc"))
_WORD_WITH_MARKS = re.compile(rf"\w[\w{re.escape(_MARKS)}]+")
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # Korean
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
_RUN = re.compile(f"([{_UNSPACED}]+)")
Progress = Callable[[int], object]


def _packages() -> tuple[Any, Any]:
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: {install_hint('search')}") from None
    return bm25s, Stemmer


class Analyzer:
    """Splits a text into stemmed words without stop words; caches the stem of each word.

    >>> Analyzer()("The Walls of the oldest cities")               # doctest: +SKIP
    ['wall', 'oldest', 'citi']
    """

    MAX_CACHED = 1_000_000  # bounds the memory of a long-running server

    def __init__(self) -> None:
        self._stem = _packages()[1].Stemmer("porter").stemWord
        self._stems: dict[str, str] = {}

    def __call__(self, text: str) -> list[str]:
        stems, known = [], self._stems
        for word in split_words(text.lower()):
            if word in STOP_WORDS:
                continue
            stem = known.get(word)
            if stem is None:
                stem = self._stem(word)
                if len(known) < self.MAX_CACHED:
                    known[word] = stem
            stems.append(stem)
        return stems


def split_words(text: str) -> list[str]:
    """The words of a text; for runs of characters in a script without spaces, every character and every pair.

    >>> split_words("a red-hot 東京都 3")
    ['red', 'hot', '東', '京', '都', '東京', '京都']
    """
    if text.isascii():
        return _WORD.findall(text)
    words: list[str] = []
    for number, piece in enumerate(_RUN.split(text)):
        if number % 2:
            words += piece
            words += map("".join, itertools.pairwise(piece))
        else:
            words += _WORD_WITH_MARKS.findall(piece)
    return words


class _ProgressList(list):
    """A list that reports progress while it is iterated over."""

    progress: Progress = staticmethod(lambda count: None)
    CHUNK = 1000

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(super().__iter__(), 1):
            if number % self.CHUNK == 0:
                self.progress(self.CHUNK)
            yield item


def build(corpus: Path, folder: Path, progress: Progress = lambda count: None) -> Path:
    """Indexes a corpus file into `folder` and returns the folder.

    `progress` is called with increments that add up to `PASSES` times the number of passages. Raises `UserError` for a
    corpus that cannot be read or has nothing to index, and if the folder cannot be written.
    """
    issues = DataIssues()

    def make(staging: Path) -> dict[str, Any]:
        meta = _build(read_corpus(corpus, issues), staging, progress, str(corpus))
        meta["notes"] = [*issues.lines(), *meta["notes"]]
        return meta | {"corpus": str(corpus.resolve())}

    return store.build_index(folder, make)


def build_from(passages: Sequence[Passage], folder: Path) -> Path:
    """Indexes passages that are at hand."""
    return store.build_index(folder, lambda making: _build(iter(passages), making, lambda count: None, "the corpus"))


def _build(passages: Iterator[Passage], folder: Path, progress: Progress, name: str) -> dict[str, Any]:
    bm25s, _ = _packages()
    analyze, vocabulary, documents = Analyzer(), {}, _ProgressList()
    for number, passage in enumerate(store.write_passages(folder, passages), 1):
        stems = analyze(f"{passage.title} {passage.text}")
        documents.append([vocabulary.setdefault(stem, len(vocabulary)) for stem in stems])
        if number % _ProgressList.CHUNK == 0:
            progress(_ProgressList.CHUNK)
    if not documents:
        raise UserError(f"{name} has no passages: nothing to index")
    if not vocabulary:
        raise UserError(
            f"{name}: none of its {len(documents)} passages contains a word that BM25 indexes (two or more letters or "
            "digits, not a stop word): check that this is the right file"
        )
    without = sum(not words for words in list.__iter__(documents))
    issues = [f"{without} of {len(documents)} passages have no indexed word: no query matches them"] if without else []
    documents.progress = progress
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index((documents, vocabulary), show_progress=False)
    index.save(str(folder / "bm25"), show_progress=False)
    return {
        "kind": "bm25", "num_passages": len(documents), "num_words": len(vocabulary), "k1": K1, "b": B,
        "analyzer": ANALYZER_VERSION, "notes": issues,
    }  # fmt: skip


class Bm25Retriever:
    """Searches a BM25 index folder. Equal scores are ordered by position in the corpus, on every machine alike."""

    def __init__(self, folder: Path):
        bm25s, _ = _packages()
        self.meta = store.read_meta(folder, "bm25")
        self._passages = store.PassageFile(folder)
        self._index = bm25s.BM25.load(str(folder / "bm25"), mmap=True, show_progress=False)
        self._analyze = Analyzer()
        self.num_passages: int | None = len(self._passages)

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The best `topk` passages of each query; only passages that share a word with the query match."""
        return [[Hit(self._passages[i], score) for i, score in self.rank(query, topk)] for query in queries]

    def rank(self, query: str, topk: int) -> list[tuple[int, float]]:
        """Returns (index of the passage, score) of the best `topk` passages, best first."""
        vocabulary = self._index.vocab_dict
        ids = [vocabulary[stem] for stem in self._analyze(query) if stem in vocabulary]
        if not ids or topk < 1:
            return []
        scores = self._index.get_scores(ids)
        topk = min(topk, len(scores))
        least = max(np.partition(scores, len(scores) - topk)[len(scores) - topk], np.finfo(np.float32).tiny)
        found = np.flatnonzero(scores >= least)
        order = found[np.lexsort((found, -scores[found]))][:topk]
        return [(int(i), float(scores[i])) for i in order]

    def close(self) -> None:
        """Closes the passage file."""
        self._passages.close()
