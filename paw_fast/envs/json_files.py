"""Reads JSON that others wrote: replaces half characters in texts, and counts what is replaced or left out.

JSON may escape half of a surrogate pair (a cut emoji, common in scraped text). Python reads it, and the first
tokenizer, file or socket that meets it fails. Every reader of foreign data puts U+FFFD in its place.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import user_errors

_HALF = re.compile(r"[\ud800-\udfff]")
_HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
HALF_REPLACED = "half a character (a lone surrogate), replaced by U+FFFD"


class ReadingNotes:
    """Counts the records of a file that were changed or left out, by reason, and where each reason was first met.

    >>> notes = ReadingNotes()
    >>> notes.note("no answer", "nq.jsonl:3")
    >>> notes.lines()
    ['1 with no answer (first: nq.jsonl:3)']
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def note(self, reason: str, where: str) -> None:
        """Counts one record."""
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def lines(self) -> list[str]:
        """One line for each reason."""
        return [f"{number} with {reason} (first: {self.first[reason]})" for reason, number in self.counts.items()]


_SAID: set[str] = set()


def warn_once(text: str) -> None:
    """One warning to the user, the first time that this process has this one."""
    if text not in _SAID:
        _SAID.add(text)
        logging.getLogger("paw_fast.envs").warning("%s", text)


def whole_text(text: str) -> str:
    """The text with U+FFFD for every surrogate; the same object where there is none.

    >>> whole_text("cut " + chr(0xD83D)) == "cut " + chr(0xFFFD)
    True
    """
    return text if text.isascii() or _HALF.search(text) is None else _HALF.sub("\ufffd", text)


def whole(value: Any) -> Any:
    """A decoded JSON value with `whole_text` applied to all its texts; the same object where nothing changes."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, list):
        items = [whole(one) for one in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        pairs = [(whole_text(key), whole(one)) for key, one in value.items()]
        same = all(a is c and b is d for (a, b), (c, d) in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    return value


def may_hold_halves(source: str, start: int = 0, end: int | None = None) -> bool:
    """Whether JSON text escapes a surrogate, so that its value must go through `whole`; quick."""
    return _HALF_ESCAPED.search(source, start, len(source) if end is None else end) is not None


def decode(source: str) -> tuple[Any, bool]:
    """(the value of JSON text, whether half characters in it were replaced). Raises `ValueError` for other text."""
    try:
        value = json.loads(source)
        clean = whole(value) if may_hold_halves(source) else value
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return clean, clean is not value


def open_text(path: Path) -> IO[str]:
    """Opens a plain or gzipped text file, with or without a byte-order mark. Raises `UserError` otherwise."""
    with user_errors("read the file", path):
        if path.exists() and not path.is_file():  # a folder; and opening a named pipe would wait for ever
            raise UserError(f"cannot read {path}: it is not a file")
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig")
        return open(path, encoding="utf-8-sig")


_BROKEN = (ValueError, EOFError, gzip.BadGzipFile, zlib.error)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
        return f"{error} (a file with one JSON value on each line must be named .jsonl)"
    return str(error)


def read_json_lines(path: Path, notes: ReadingNotes | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. Raises `UserError` naming file and line."""
    with open_text(path) as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    record, replaced = decode(line)
                    if not isinstance(record, dict):
                        array = ": a file that is one JSON array must be named .json" if number == 1 else ""
                        raise UserError(
                            f"{path}:{number}: expected a JSON object, got {type(record).__name__}"
                            f"{array if isinstance(record, list) else ''}"
                        )
                    if replaced and notes is not None:
                        notes.note(HALF_REPLACED, f"{path}:{number}")
                    yield number, record
        except _BROKEN as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}:{number + isinstance(error, UnicodeDecodeError)}: not JSON: {error}") from None


def read_json(path: Path, notes: ReadingNotes | None = None) -> Any:
    """The value of a whole JSON file. Raises `UserError` naming the file. Half characters are counted by the member
    of the array or object that they stand in."""
    with open_text(path) as handle:
        try:
            source = handle.read()
            value = json.loads(source)
            if not may_hold_halves(source):
                return value
            clean = whole(value)
        except RecursionError:
            raise UserError(f"{path}: not JSON: nested too deeply") from None
        except _BROKEN as error:
            raise UserError(f"{path}: not JSON: {_reason(error)}") from None
    if clean is not value and notes is not None:
        before, after = (list(one.items()) if isinstance(one, dict) else one for one in (value, clean))
        members = zip(before, after, strict=False) if isinstance(before, list) else [(before, after)]
        for number, (one, other) in enumerate(members):
            if one != other:
                notes.note(HALF_REPLACED, f"{path}: record {number}")
    return clean
