"""Reads corpora as they are published, one passage at a time.

.jsonl, and .json that holds a list, have records of one of these forms:
    {"id", "contents": "\\"Title\\"\\nText"}         wiki-18
    {"id", "title", "text"}                         BEIR; without an id HippoRAG's 2WikiMultihopQA and MuSiQue
    {"paragraphs": [{"title", "paragraph_text"}]}   MuSiQue's questions: the passages that they bring along
    {"context": [[title, [sentences]]]}             HotpotQA's and 2WikiMultihopQA's questions
.json that holds an object: {title: [sentences]}
Either may be gzipped (.gz). Passages without an id, which questions share, are kept once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paw_fast.envs.json_files import ReadingNotes, read_json, read_json_lines
from paw_fast.envs.search_qa.retrieval.records import Passage
from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import user_errors

ACCEPTED = "`contents`, `text` (and `title`), `paragraphs` or `context`"
NO_TEXT = "no text (null), left out"
_TEXT_KEYS = ("contents", "text", "paragraph_text")


def kind_of(path: Path) -> str:
    """`jsonl` or `json`, by the name without `.gz`. Raises `UserError` for other names."""
    name = path.name.removesuffix(".gz").lower()
    for kind in ("jsonl", "json"):
        if name.endswith("." + kind):
            return kind
    raise UserError(f"{path}: not a kind of file that can be read here: expected .jsonl or .json, plain or .gz")


def count_hint(path: Path) -> int | None:
    """How many passages a corpus file has, for a progress bar; None where only reading it whole would tell."""
    if path.suffix != ".jsonl":
        return None
    with user_errors("read the corpus", path), open(path, "rb") as lines:
        return sum(block.count(b"\n") for block in iter(lambda: lines.read(2**20), b"")) or None


def read_corpus(path: Path, notes: ReadingNotes | None = None) -> Iterator[Passage]:
    """The passages of a corpus file, in its order. Raises `UserError` naming file and place.

    `notes` counts the passages that are changed or left out.
    """
    notes = ReadingNotes() if notes is None else notes
    if kind_of(path) == "jsonl":
        lines = ((f"{path}:{number}", record) for number, record in read_json_lines(path, notes))
        yield from _unique(_from_records(lines, notes), path)
        return
    data = read_json(path, notes)
    if isinstance(data, Mapping):
        for number, (title, text) in enumerate(data.items()):
            if text is None:
                notes.note(NO_TEXT, f"{path}: {title!r}")
            else:
                yield Passage(str(number), title, _joined(text, f"{path}: {title!r}"))
    elif isinstance(data, list):
        records = ((f"{path}: record {number}", record) for number, record in enumerate(data))
        yield from _unique(_from_records(records, notes), path)
    else:
        raise UserError(
            f"{path}: expected a JSON object of titles or a list of passages or questions, got {type(data).__name__}"
        )


def _from_records(records: Iterable[tuple[str, Any]], notes: ReadingNotes) -> Iterator[Passage]:
    for where, record in records:
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: expected an object with {ACCEPTED}, got {type(record).__name__}")
        key = next((one for one in _TEXT_KEYS if one in record), None)
        if isinstance(record.get("paragraphs"), list):
            yield from _from_paragraphs(record["paragraphs"], where, notes)
        elif record.get("context") is not None and key is None:
            yield from _from_context(record["context"], where)
        elif key is None:
            keys = ", ".join(map(str, record)) or "no key"
            raise UserError(f"{where}: no passage: expected {ACCEPTED}, found {keys}")
        elif record[key] is None:
            notes.note(NO_TEXT, where)
        else:
            name = next((str(record[one]) for one in ("id", "_id") if record.get(one) is not None), "")
            text = record[key] if isinstance(record[key], str) else _joined(record[key], where)
            title = _title(record.get("title"))
            yield Passage.from_contents(name, text) if key == "contents" else Passage(name, title, text)


def _from_paragraphs(paragraphs: list[Any], where: str, notes: ReadingNotes) -> Iterator[Passage]:
    for one in paragraphs:
        if not isinstance(one, Mapping) or "title" not in one or "paragraph_text" not in one:
            raise UserError(f"{where}: a paragraph without `title` and `paragraph_text`")
        if one["paragraph_text"] is None:
            notes.note(NO_TEXT, where)
        else:
            yield Passage("", _title(one["title"]), _joined(one["paragraph_text"], where))


def _from_context(context: Any, where: str) -> Iterator[Passage]:
    try:
        # The hub's version keeps titles and sentences in two lists, the original in pairs.
        pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        for title, text in pairs:
            yield Passage("", _title(title), _joined(text, where))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: `context` is no list of [title, sentences] pairs to take passages from") from None


def _title(value: Any) -> str:
    return "" if value is None else str(value)


def _joined(text: Any, where: str) -> str:
    """Sentences as one text."""
    if isinstance(text, str):
        return text.strip()
    if isinstance(text, list) and all(isinstance(one, str) for one in text):
        return " ".join(" ".join(text).split())
    raise UserError(f"{where}: the text is neither a string nor a list of sentences")


def _unique(passages: Iterator[Passage], path: Path) -> Iterator[Passage]:
    """Numbers the passages that have no id and leaves out their repetitions; an id that comes twice is an error."""
    ids: set[str] = set()
    contents: set[str] = set()
    for passage in passages:
        if passage.passage_id:
            name = passage.passage_id
        elif passage.contents not in contents:
            name = str(len(contents))
            contents.add(passage.contents)
        else:
            continue
        if name in ids:
            raise UserError(f"{path}: the id {name!r} comes twice: ids must be unique")
        ids.add(name)
        yield passage if passage.passage_id else Passage(name, passage.title, passage.text)
