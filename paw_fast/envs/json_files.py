"""Reads JSON and JSON-lines data files, replaces lone surrogates, and counts the records that were changed or skipped.

JSON may contain an escaped half of a surrogate pair (a truncated emoji, common in scraped text). Python decodes it
without an error, but the first tokenizer, file or socket that encodes it fails. Every reader of external data
therefore replaces it by U+FFFD.
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

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SURROGATE_REPLACED = "a lone surrogate (replaced by U+FFFD)"


class DataIssues:
    """Counts the records of a file that were changed or skipped, by reason, with the first location of each reason.

    >>> issues = DataIssues()
    >>> issues.add("no answer", "nq.jsonl:3")
    >>> issues.lines()
    ['1 record with no answer (first: nq.jsonl:3)']
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        """Counts one record; `where` names it, as in `nq.jsonl:3`."""
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def lines(self) -> list[str]:
        """One line per reason."""
        return [
            f"{number} {'record' if number == 1 else 'records'} with {reason} (first: {self.first[reason]})"
            for reason, number in self.counts.items()
        ]


_WARNED: set[str] = set()


def warn_once(text: str) -> None:
    """Logs a warning, unless this process has logged the same text before."""
    if text not in _WARNED:
        _WARNED.add(text)
        logging.getLogger("paw_fast.envs").warning("%s", text)


def replace_surrogates(text: str) -> str:
    """Replaces every surrogate in `text` by U+FFFD; returns the same object if there is none.

    >>> replace_surrogates("cut " + chr(0xD83D)) == "cut " + chr(0xFFFD)
    True
    """
    return text if text.isascii() or _SURROGATE.search(text) is None else _SURROGATE.sub("\ufffd", text)


def replace_surrogates_in(value: Any) -> Any:
    """Applies `replace_surrogates` to all strings of a decoded JSON value; returns the same object if none changes."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        items = [replace_surrogates_in(one) for one in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        pairs = [(replace_surrogates(key), replace_surrogates_in(one)) for key, one in value.items()]
        same = all(a is c and b is d for (a, b), (c, d) in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    return value


def may_contain_surrogates(source: str, start: int = 0, end: int | None = None) -> bool:
    """Whether JSON text escapes a surrogate, so that its value must go through `replace_surrogates_in`."""
    return _ESCAPED_SURROGATE.search(source, start, len(source) if end is None else end) is not None


def decode(source: str) -> tuple[Any, bool]:
    """Returns (the decoded value, whether surrogates in it were replaced). Raises `ValueError` for invalid JSON."""
    try:
        value = json.loads(source)
        clean = replace_surrogates_in(value) if may_contain_surrogates(source) else value
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return clean, clean is not value


def open_text(path: Path) -> IO[str]:
    """Opens a plain or gzipped UTF-8 file, with or without a byte-order mark. Raises `UserError` if it cannot."""
    with user_errors("read the file", path):
        if path.exists() and not path.is_file():  # a folder, or a named pipe, which would block forever
            raise UserError(f"cannot read {path}: it is not a file")
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig")
        return open(path, encoding="utf-8-sig")


_DECODE_ERRORS = (ValueError, EOFError, gzip.BadGzipFile, zlib.error)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
        return f"{error} (a file with one JSON value on each line must be named .jsonl)"
    return str(error)


def read_json_lines(path: Path, issues: DataIssues | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) for every non-blank line. Raises `UserError` with the file and the line number."""
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
                    if replaced and issues is not None:
                        issues.add(SURROGATE_REPLACED, f"{path}:{number}")
                    yield number, record
        except _DECODE_ERRORS as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}:{number + isinstance(error, UnicodeDecodeError)}: not JSON: {error}") from None


def read_json(path: Path, issues: DataIssues | None = None) -> Any:
    """Returns the value of a JSON file. Raises `UserError` with the file's path.

    `issues` counts replaced surrogates once per member of the top-level array or object.
    """
    with open_text(path) as handle:
        try:
            source = handle.read()
            value = json.loads(source)
            if not may_contain_surrogates(source):
                return value
            clean = replace_surrogates_in(value)
        except RecursionError:
            raise UserError(f"{path}: not JSON: nested too deeply") from None
        except _DECODE_ERRORS as error:
            raise UserError(f"{path}: not JSON: {_reason(error)}") from None
    if clean is not value and issues is not None:
        before, after = (list(one.items()) if isinstance(one, dict) else one for one in (value, clean))
        members = zip(before, after, strict=False) if isinstance(before, list) else [(before, after)]
        for number, (one, other) in enumerate(members):
            if one != other:
                issues.add(SURROGATE_REPLACED, f"{path}: record {number}")
    return clean
