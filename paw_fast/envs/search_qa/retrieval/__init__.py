"""Retrieval: corpora, a BM25 and a dense index over them, a server and its client."""

from __future__ import annotations

import os
from pathlib import Path

from paw_fast.envs import lucene
from paw_fast.envs.search_qa.retrieval.records import Hit, Passage, Retriever
from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import cache_folder

__all__ = ["Hit", "Passage", "Retriever", "index_cache", "index_notes", "index_of", "open_index"]


def index_cache(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the indexes that are built when they are needed."""
    return cache_folder(cache_dir) / "search"


def index_of(corpus: Path, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The index folder of a corpus: `corpus` itself where it is one, else a BM25 index in the cache, which is built
    at the first call, with a progress bar, and again when the file has changed. Raises `UserError`."""
    if corpus.is_dir():
        return corpus
    if not corpus.is_file():
        raise UserError(f"no corpus at {corpus}: give a .jsonl or .json file, or the folder of an index")
    from paw_fast.envs.search_qa.retrieval import bm25, store

    settings = {"kind": "bm25", "k1": lucene.K1, "b": lucene.B, "analyzer": bm25.ANALYZER_VERSION}
    name = f"{corpus.name.split('.')[0]}-{store.fingerprint(corpus, **settings)}"
    folder = index_cache(cache_dir) / name
    return folder if (folder / "meta.json").is_file() else build_bm25(corpus, folder)


def build_bm25(corpus: Path, folder: Path) -> Path:
    """Builds a BM25 index with a progress bar."""
    from paw_fast.envs.search_qa.retrieval import bm25
    from paw_fast.envs.search_qa.retrieval.corpus import count_hint
    from paw_fast.runs import console

    total = count_hint(corpus)
    with console.progress(f"indexing {corpus.name}", bm25.PASSES * total if total else None) as advance:
        return bm25.build(corpus, folder, advance)


def open_index(folder: Path) -> Retriever:
    """The retriever over an index folder, of whichever kind it is."""
    from paw_fast.envs.search_qa.retrieval import store

    if store.read_meta(folder)["kind"] == "dense":
        from paw_fast.envs.search_qa.retrieval.dense import DenseRetriever

        return DenseRetriever(folder)
    from paw_fast.envs.search_qa.retrieval.bm25 import Bm25Retriever

    return Bm25Retriever(folder)


def index_notes(retriever: Retriever) -> list[str]:
    """What was changed, left out or cannot be found when the corpus behind a retriever was indexed: a line each."""
    return list(getattr(retriever, "meta", {}).get("notes", ()))
