"""Passage retrieval: corpus readers, BM25 and dense indexes, and an HTTP server with its client."""

from __future__ import annotations

import os
from pathlib import Path

from paw_fast.envs import lucene
from paw_fast.envs.search_qa.retrieval.records import Hit, Passage, Retriever
from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import cache_folder

__all__ = ["Hit", "Passage", "Retriever", "index_cache", "index_issues", "index_of", "open_index"]


def index_cache(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the indexes that are built when they are needed."""
    return cache_folder(cache_dir) / "search"


def index_of(corpus: Path, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The index folder of a corpus: `corpus` itself if it is a folder, else a BM25 index in the cache.

    The index is built at the first call, with a progress bar, and rebuilt when the corpus file changes. Raises
    `UserError` for a path that does not exist and for a corpus that cannot be read.
    """
    if corpus.is_dir():
        return corpus
    if not corpus.is_file():
        raise UserError(f"no corpus at {corpus}: expected a .jsonl or .json file, or an index folder")
    from paw_fast.envs.search_qa.retrieval import bm25, store

    settings = {"kind": "bm25", "k1": lucene.K1, "b": lucene.B, "analyzer": bm25.ANALYZER_VERSION}
    name = f"{corpus.name.split('.')[0]}-{store.fingerprint(corpus, **settings)}"
    folder = index_cache(cache_dir) / name
    return folder if (folder / "meta.json").is_file() else build_bm25(corpus, folder)


def build_bm25(corpus: Path, folder: Path) -> Path:
    """Builds a BM25 index with a progress bar, and returns its folder."""
    from paw_fast.envs.search_qa.retrieval import bm25
    from paw_fast.envs.search_qa.retrieval.corpus import count_hint
    from paw_fast.runs import progress

    total = count_hint(corpus)
    with progress.phase(f"indexing {corpus.name}", bm25.PASSES * total if total else None) as advance:
        return bm25.build(corpus, folder, advance)


def open_index(folder: Path) -> Retriever:
    """Opens an index folder and returns the retriever of its kind (BM25 or dense)."""
    from paw_fast.envs.search_qa.retrieval import store

    if store.read_meta(folder)["kind"] == "dense":
        from paw_fast.envs.search_qa.retrieval.dense import DenseRetriever

        return DenseRetriever(folder)
    from paw_fast.envs.search_qa.retrieval.bm25 import Bm25Retriever

    return Bm25Retriever(folder)


def index_issues(retriever: Retriever) -> list[str]:
    """One line per issue found when the retriever's corpus was indexed: passages changed, skipped or unsearchable."""
    return list(getattr(retriever, "meta", {}).get("notes", ()))
