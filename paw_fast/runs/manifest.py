"""Records the size and SHA-256 of every file of a folder, and compares the folder with the record. No torch.

A folder is sealed when it is complete: `seal` writes its manifest and flushes all files to disk. `faults` lists what
has changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paw_fast.runs.atomic_files import sync_file, sync_folder

MANIFEST = "manifest.json"
SCHEMA = 1


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as handle:
        found = hashlib.sha256()
        while block := handle.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def files_of(folder: Path) -> Iterator[str]:
    """The files below a folder, by their paths relative to it; without its manifest, hidden files and folders (locks,
    what is being made; but with .metadata, the index of a sharded checkpoint), and folders that have a manifest of
    their own."""
    for path, folders, names in os.walk(folder):
        inside = Path(path).relative_to(folder)
        if MANIFEST in names and inside != Path():
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if (not name.startswith(".") or name == ".metadata") and (inside / name).as_posix() != MANIFEST:
                yield (inside / name).as_posix()


def seal(folder: Path, *, sync: bool = True, **more: Any) -> None:
    """Writes the manifest of all files in the folder, and with `sync` flushes everything to disk.

    `more` is added to the manifest. Without `sync` a crash of the machine may damage the files; `faults` finds that.
    """
    entries = {}
    for name in files_of(folder):
        path = folder / name
        if sync:
            sync_file(path)
        entries[name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    content = {"schema": SCHEMA, **more, "files": entries}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if sync:
        sync_file(folder / MANIFEST)
        sync_folder(folder)


def read_manifest(folder: Path) -> tuple[dict[str, tuple[int, str]], str]:
    """(size and SHA-256 of each file, what is wrong with the manifest or empty)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        outside = next((name for name in files if not _is_inside(name)), None)
    except FileNotFoundError:
        return {}, f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return {}, f"{MANIFEST} cannot be read ({error})"
    if outside is not None:
        return {}, f"{MANIFEST} names a file outside the folder, {outside[:100]!r}"
    if manifest.get("schema") != SCHEMA:
        return {}, f"its schema is {manifest.get('schema')}, but this version of paw-fast reads schema {SCHEMA}"
    return files, ""


def _is_inside(name: str) -> bool:
    """Whether a name in a manifest is a relative path below its folder."""
    return bool(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


def changes(folder: Path, files: Mapping[str, tuple[int, str]], contents: bool = True) -> list[str]:
    """Descriptions of the files that differ from their size and, with `contents`, their SHA-256 in a manifest."""
    found = []
    for name, (size, sha256) in files.items():
        path = folder / name
        try:
            found_at = path.stat()
            actual = found_at.st_size
            if not stat.S_ISREG(found_at.st_mode):  # a pipe or a device could be read for ever
                found.append(f"{name} is not a file")
            elif actual != size:
                found.append(f"{name} has {actual} bytes, expected {size}")
            elif contents and digest(path) != sha256:
                found.append(f"{name} has changed (its checksum differs)")
        except (OSError, UnicodeEncodeError) as error:
            error = error if isinstance(error, OSError) else FileNotFoundError()  # no file can have such a name
            found.append(f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}")
    return found


def faults(folder: Path, *, contents: bool = True) -> list[str]:
    """Descriptions of all differences from the manifest, added files included; empty where the folder is intact."""
    files, wrong = read_manifest(folder)
    if wrong:
        return [wrong]
    added = [f"{name} was added" for name in files_of(folder) if name not in files]
    return changes(folder, files, contents) + added
