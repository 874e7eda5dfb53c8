"""A folder that holds an index: its passages, memory-mapped, and a `meta.json` that is written last.

INDEX/passages.jsonl  offsets.npy  meta.json  and what the index itself keeps there
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paw_fast.envs.json_files import whole_text
from paw_fast.envs.search_qa.retrieval.records import Passage
from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import build_folder, user_errors, write_text

VERSION = 1  # raise it whenever the same corpus gives another folder


def write_passages(folder: Path, passages: Iterable[Passage]) -> Iterator[Passage]:
    """Writes the passages to the folder as they go by; `read_passages` gives them back by number."""
    offsets = [0]
    with open(folder / "passages.jsonl", "wb") as out:
        for passage in passages:
            line = json.dumps([passage.passage_id, passage.title, passage.text], ensure_ascii=False)
            offsets.append(offsets[-1] + out.write(line.encode("utf-8", "surrogatepass") + b"\n"))
            yield passage
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))


class PassageFile:
    """The passages of an index by number; only those that are asked for are read from the disk."""

    def __init__(self, folder: Path):
        with user_errors("read the index", folder):
            self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
            with open(folder / "passages.jsonl", "rb") as handle:  # never empty: that could not be mapped
                self._bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Passage:
        line = self._bytes[int(self._offsets[number]) : int(self._offsets[number + 1])]
        # Indexes made before half characters were replaced on reading may still hold them.
        return Passage(*map(whole_text, json.loads(line.decode("utf-8", "surrogatepass"))))

    def close(self) -> None:
        self._bytes.close()


def read_meta(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """The folder's meta.json. Raises `UserError` when it is no index, of another version or of another kind."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{folder} is not an index: make one with `paw-fast retriever index --corpus FILE --out {folder}`"
        ) from None
    if meta.get("version") != VERSION or (kind is not None and meta.get("kind") != kind):
        raise UserError(
            f"{folder} is an index of kind {meta.get('kind')}, version {meta.get('version')}, expected "
            f"{kind or 'any kind'}, version {VERSION}: make it again with `paw-fast retriever index`"
        )
    return meta


def fingerprint(path: Path, **settings: Any) -> str:
    """A name for what an index is made of: the file (by place, size and time of change) and the settings."""
    with user_errors("read the corpus", path):
        found = path.stat()
    parts = [str(path.resolve()), found.st_size, found.st_mtime_ns, VERSION, sorted(settings.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def build_index(folder: Path, build: Callable[[Path], dict[str, Any]]) -> Path:
    """Makes an index in `folder`: what `build` writes, and what it returns as meta.json. An index that is there already
    is replaced. Raises `UserError` for a `folder` that holds something else."""
    if folder.exists() and not (folder / "meta.json").is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not an index: choose another folder")

    def build_with_meta(hidden: Path) -> None:
        meta = build(hidden)
        write_text(hidden / "meta.json", json.dumps({"version": VERSION, **meta}, indent=2) + "\n")

    with user_errors("write the index", folder):
        build_folder(folder, build_with_meta, replace=True, remove_stale=False)
    read_meta(folder)
    return folder
