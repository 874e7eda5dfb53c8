"""Reads passage corpora in their published formats, one passage at a time.

.jsonl files, and .json files that hold a list, have records of one of these forms:
    {"id", "contents": "\\"Title\\"\\nText"}         wiki-18
    {"id", "title", "text"}                         BEIR; without an id HippoRAG's 2WikiMultihopQA and MuSiQue
    {"paragraphs": [{"title", "paragraph_text"}]}   MuSiQue's questions, which contain their passages
    {"context": [[title, [sentences]]]}             HotpotQA's and 2WikiMultihopQA's questions
.json files that hold an object have the form {title: [sentences]}.
Files may be gzipped (.gz). Passages without an id are deduplicated, since several questions may contain the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paw_fast.envs.json_files import DataIssues, read_json, read_json_lines
from paw_fast.envs.search_qa.retrieval.records import Passage
from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import user_errors

ACCEPTED = "`contents`, `text` (and `title`), `paragraphs` or `context`"
NO_TEXT = "no text (null, skipped)"
_TEXT_KEYS = ("contents", "text", "paragraph_text")


def kind_of(path: Path) -> str:
    """`jsonl` or `json`, by the file's name without `.gz`. Raises `UserError` for other names."""
    name = path.name.removesuffix(".gz").lower()
    for kind in ("jsonl", "json"):
        if name.endswith("." + kind):
            return kind
    raise UserError(f"{path}: unsupported file type: expected .jsonl or .json, plain or .gz")


def count_hint(path: Path) -> int | None:
    """The number of passages of a corpus file, for a progress bar; None if it is not cheap to count."""
    if path.suffix != ".jsonl":
        return None
    with user_errors("read the corpus", path), open(path, "rb") as lines:
        return sum(block.count(b"\n") for block in iter(lambda: lines.read(2**20), b"")) or None


def read_corpus(path: Path, issues: DataIssues | None = None) -> Iterator[Passage]:
    """Yields the passages of a corpus file in order. Raises `UserError` with the file and the record.

    `issues` counts the passages that are changed or skipped.
    """
    issues = DataIssues() if issues is None else issues
    if kind_of(path) == "jsonl":
        lines = ((f"{path}:{number}", record) for number, record in read_json_lines(path, issues))
        yield from _unique(_from_records(lines, issues), path)
        return
    data = read_json(path, issues)
    if isinstance(data, Mapping):
        for number, (title, text) in enumerate(data.items()):
            if text is None:
                issues.add(NO_TEXT, f"{path}: {title!r}")
            else:
                yield Passage(str(number), title, _joined(text, f"{path}: {title!r}"))
    elif isinstance(data, list):
        records = ((f"{path}: record {number}", record) for number, record in enumerate(data))
        yield from _unique(_from_records(records, issues), path)
    else:
        raise UserError(
            f"{path}: expected a JSON object of titles or a list of passages or questions, got {type(data).__name__}"
        )


def _from_records(records: Iterable[tuple[str, Any]], issues: DataIssues) -> Iterator[Passage]:
    for where, record in records:
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: expected an object with {ACCEPTED}, got {type(record).__name__}")
        key = next((one for one in _TEXT_KEYS if one in record), None)
        if isinstance(record.get("paragraphs"), list):
            yield from _from_paragraphs(record["paragraphs"], where, issues)
        elif record.get("context") is not None and key is None:
            yield from _from_context(record["context"], where)
        elif key is None:
            keys = ", ".join(map(str, record)) or "no keys"
            raise UserError(f"{where}: no passage: expected {ACCEPTED}, got {keys}")
        elif record[key] is None:
            issues.add(NO_TEXT, where)
        else:
            name = next((str(record[one]) for one in ("id", "_id") if record.get(one) is not None), "")
            text = record[key] if isinstance(record[key], str) else _joined(record[key], where)
            title = _title(record.get("title"))
            yield Passage.from_contents(name, text) if key == "contents" else Passage(name, title, text)


def _from_paragraphs(paragraphs: list[Any], where: str, issues: DataIssues) -> Iterator[Passage]:
    for one in paragraphs:
        if not isinstance(one, Mapping) or "title" not in one or "paragraph_text" not in one:
            raise UserError(f"{where}: a paragraph without `title` and `paragraph_text`")
        if one["paragraph_text"] is None:
            issues.add(NO_TEXT, where)
        else:
            yield Passage("", _title(one["title"]), _joined(one["paragraph_text"], where))


def _from_context(context: Any, where: str) -> Iterator[Passage]:
    try:
        # The Hugging Face Hub's version stores titles and sentences in two lists, the original one in pairs.
        pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        for title, text in pairs:
            yield Passage("", _title(title), _joined(text, where))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: `context` is not a list of [title, sentences] pairs") from None


def _title(value: Any) -> str:
    return "" if value is None else str(value)


def _joined(text: Any, where: str) -> str:
    """Joins a string or a list of sentences into one text. Raises `UserError` for anything else."""
    if isinstance(text, str):
        return text.strip()
    if isinstance(text, list) and all(isinstance(one, str) for one in text):
        return " ".join(" ".join(text).split())
    raise UserError(f"{where}: the text is neither a string nor a list of sentences")


def _unique(passages: Iterator[Passage], path: Path) -> Iterator[Passage]:
    """Numbers the passages without an id and drops duplicates of them. Raises `UserError` for a duplicate id."""
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
            raise UserError(f"{path}: duplicate id {name!r}: ids must be unique")
        ids.add(name)
        yield passage if passage.passage_id else Passage(name, passage.title, passage.text)
