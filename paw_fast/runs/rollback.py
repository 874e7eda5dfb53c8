"""Removes what a run wrote into its folder, if it failed before it had results."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from paw_fast.runs.atomic_files import existing_parent

RESULTS = ("checkpoints", "warm_start", "metrics.jsonl", "episodes")
"""Entries of a run directory that are worth keeping if they are not empty: a run can be resumed from them."""


@dataclass(frozen=True)
class Before:
    """A folder as it was before a run began there. Produced by `look`, consumed by `restore`.

    entries: the names in it, None if it did not exist. parent: the nearest folder above it that existed.
    """

    entries: frozenset[str] | None
    parent: Path


def look(folder: Path) -> Before:
    """Remembers what a folder holds. Raises `OSError` if it cannot be listed."""
    exists = folder.is_dir()
    entries = frozenset(path.name for path in folder.iterdir()) if exists else None
    return Before(entries, existing_parent(folder.absolute().parent))


def restore(run_dir: Path, before: Before) -> bool:
    """Removes the entries that a run added to its folder, and the folder and its parents if the run made them.

    Does nothing and returns False if the run has results. The corrected command can then be run again with the same
    folder. This process must have held the lock.
    """
    if not run_dir.is_dir():
        return False
    added = [path for path in run_dir.iterdir() if path.name not in (before.entries or ())]
    if any(path.name in RESULTS and _holds_something(path) for path in added):
        return False
    for path in added:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if before.entries is None:
        folder = run_dir.absolute()
        with suppress(OSError):  # something else is in it
            while folder != before.parent:
                folder.rmdir()
                folder = folder.parent
    return True


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(one.is_file() and one.stat().st_size for one in path.rglob("*"))
    return path.stat().st_size > 0
