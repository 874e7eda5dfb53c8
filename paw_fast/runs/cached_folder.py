"""Makes a folder of the cache once, and verifies it whenever it is used. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from paw_fast.runs import console
from paw_fast.runs.atomic_files import build_folder
from paw_fast.runs.cache_lock import cache_lock
from paw_fast.runs.manifest import faults, read_manifest, seal

MAX_DIGEST_BYTES = 256 << 20
"""Of larger folders only the names and sizes of the files are verified: reading them takes seconds at each start."""


def damage(folder: Path) -> list[str]:
    """Differences of the folder from its manifest, with the contents up to `MAX_DIGEST_BYTES`."""
    files, wrong = read_manifest(folder)
    large = sum(size for size, _ in files.values()) > MAX_DIGEST_BYTES
    return [wrong] if wrong else faults(folder, contents=not large)


def cached_folder(folder: Path, build: Callable[[Path], object], what: str, lock: Path) -> Path:
    """Returns `folder`, made by `build` (see `build_folder`) unless it is there and as it was made.

    A damaged folder is made again, with one line. Of several processes one makes it and the others wait for the file
    `lock`. `what` names the contents in messages, in the plural. Raises what `build` raises, and `OSError`.
    """
    if folder.is_dir() and not damage(folder):
        return folder

    def sealed(hidden: Path) -> None:
        build(hidden)
        seal(hidden, sync=False)  # what a crash of the machine damages is found and made again

    with cache_lock(lock, f"the {what} in {folder}"):
        found = damage(folder) if folder.is_dir() else []
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            console.say(f"the {what} in {folder} are damaged: {found[0]}{more}; making them again")
        if found or not folder.is_dir():
            build_folder(folder, sealed, replace=True)
    return folder
