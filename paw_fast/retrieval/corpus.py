"""Reads corpora as they are published, one passage at a time.

.jsonl   wiki-18: {"id", "contents": "\\"Title\\"\\nText"}; also {"id", "title", "text"}, and MuSiQue's questions
.json    {title: [sentences]}, or the records of HotpotQA and 2WikiMultihopQA: the passages in their `context`
Either may be gzipped (.gz). Passages that several questions bring along are kept once.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from paw_fast.files import user_errors
from paw_fast.retrieval.records import Passage
from paw_fast.types import UserError


def open_text(path: Path) -> IO[str]:
    """Opens a plain or gzipped text file. Raises `UserError` when it cannot be read."""
    with user_errors("read the file", path):
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8")
        return open(path, encoding="utf-8")


def kind_of(path: Path) -> str:
    """`jsonl` or `json`, by the name without `.gz`. Raises `UserError` for other names."""
    name = path.name.removesuffix(".gz").lower()
    for kind in ("jsonl", "json"):
        if name.endswith("." + kind):
            return kind
    raise UserError(f"{path}: not a kind of file that can be read here: expected .jsonl or .json, plain or .gz")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. Raises `UserError` naming file and line."""
    with open_text(path) as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise UserError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
                    yield number, record
        except (ValueError, EOFError, gzip.BadGzipFile) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}:{number + isinstance(error, UnicodeDecodeError)}: not JSON: {error}") from None


def read_json(path: Path) -> Any:
    """The value of a whole JSON file. Raises `UserError` naming the file."""
    with open_text(path) as handle:
        try:
            return json.load(handle)
        except (ValueError, EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: not JSON: {error}") from None


def count_hint(path: Path) -> int | None:
    """How many passages a corpus file has, for a progress bar; None where only reading it whole would tell."""
    if path.suffix != ".jsonl":
        return None
    with user_errors("read the corpus", path), open(path, "rb") as lines:
        return sum(block.count(b"\n") for block in iter(lambda: lines.read(2**20), b"")) or None


def read_corpus(path: Path) -> Iterator[Passage]:
    """The passages of a corpus file, in its order. Raises `UserError` naming file and place."""
    if kind_of(path) == "jsonl":
        yield from _unique(_from_lines(path), path)
        return
    data = read_json(path)
    if isinstance(data, Mapping):
        for number, (title, text) in enumerate(data.items()):
            yield Passage(str(number), title, _joined(text, f"{path}: {title!r}"))
    elif isinstance(data, list):
        yield from _unique(_from_contexts(data, path), path)
    else:
        raise UserError(f"{path}: expected a JSON object of titles or a list of questions, got {type(data).__name__}")


def _from_lines(path: Path) -> Iterator[Passage]:
    for number, record in read_json_lines(path):
        where = f"{path}:{number}"
        if isinstance(record.get("paragraphs"), list):  # MuSiQue
            for one in record["paragraphs"]:
                try:
                    yield Passage("", str(one["title"]), str(one["paragraph_text"]))
                except (KeyError, TypeError):
                    raise UserError(f"{where}: a paragraph without `title` and `paragraph_text`") from None
            continue
        name = str(record.get("id", number - 1))
        if isinstance(record.get("contents"), str):
            yield Passage.from_contents(name, record["contents"])
        elif isinstance(record.get("text"), str):
            yield Passage(name, str(record.get("title") or ""), record["text"])
        else:
            raise UserError(f"{where}: a passage needs `contents`, or `text` and `title`; it has {', '.join(record)}")


def _from_contexts(records: list[Any], path: Path) -> Iterator[Passage]:
    for number, record in enumerate(records):
        where = f"{path}: record {number}"
        try:
            context = record["context"]
            # The hub's version keeps titles and sentences in two lists, the original in pairs.
            pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
            for title, text in pairs:
                yield Passage("", str(title), _joined(text, where))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where}: no `context` of [title, sentences] pairs to take passages from") from None


def _joined(text: Any, where: str) -> str:
    """Sentences as one text."""
    if isinstance(text, str):
        return text.strip()
    if isinstance(text, list) and all(isinstance(one, str) for one in text):
        return " ".join(" ".join(text).split())
    raise UserError(f"{where}: the text is neither a string nor a list of sentences")


def _unique(passages: Iterator[Passage], path: Path) -> Iterator[Passage]:
    """Numbers the passages that have no id and leaves out their repetitions; an id that comes twice is an error."""
    seen: set[str] = set()
    for passage in passages:
        if passage.passage_id:
            if passage.passage_id in seen:
                raise UserError(f"{path}: the id {passage.passage_id!r} comes twice: ids must be unique")
            seen.add(passage.passage_id)
            yield passage
        elif passage.contents not in seen:
            number = len(seen)
            seen.add(passage.contents)
            yield Passage(str(number), passage.title, passage.text)
