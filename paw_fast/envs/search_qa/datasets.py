"""Reads question-answering data sets in their published formats, and weighted mixtures of several files.

A file holds one JSON object per line (.jsonl) or a JSON list of objects (.json), either of them optionally gzipped
(.gz):

FlashRAG          {"id", "question", "golden_answers"}
MuSiQue           {"id", "question", "answer", "answer_aliases", "paragraphs", "answerable"}
HotpotQA, 2Wiki   {"_id", "question", "answer", "type", "supporting_facts", "context"}
others            any of `QUESTION_KEYS` and `ANSWER_KEYS`, in any case; answers as a string or a list of strings

Questions that are marked unanswerable, or have no answer left after normalization, are skipped and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paw_fast.envs.json_files import DataIssues, read_json, read_json_lines
from paw_fast.envs.search_qa.retrieval.corpus import kind_of
from paw_fast.envs.search_qa.reward import normalize
from paw_fast.errors import UserError

QUESTION_KEYS = ("question", "query")
ANSWER_KEYS = ("golden_answers", "answers", "answer")
_ID_KEYS = ("id", "_id", "question_id", "qid")
NO_ANSWER = "no answer (skipped)"
UNANSWERABLE = "`answerable: false` (skipped)"
DROPPED_ANSWER = "an answer that is empty after normalization (that answer is ignored)"


@dataclass(frozen=True)
class Question:
    """A question and all answers that count as correct. Produced by `load_questions` and `synthetic_corpus`.

    kind        the task type that results are grouped by: the file's name, or the number of hops
    supporting  titles of the passages that lead to the answer, in order, if the data set names them

    >>> Question("1", "Who wrote Emma?", ("Jane Austen", "Austen"), "nq").golden[0]
    'Jane Austen'
    """

    question_id: str
    text: str
    golden: tuple[str, ...]
    kind: str
    supporting: tuple[str, ...] = ()


def load_questions(path: Path, issues: DataIssues | None = None) -> list[Question]:
    """All questions of a file. `issues` counts the records that are changed or skipped.

    Raises `UserError` with the file and the record for a record that is not a question and for a duplicate id.
    """
    issues = DataIssues() if issues is None else issues
    kind = re.sub(r"[^A-Za-z0-9_-]+", "_", re.sub(r"\.jsonl?(\.gz)?$", "", path.name)).strip("_") or "questions"
    if kind_of(path) == "jsonl":
        records: Iterable[tuple[str, Any]] = ((f"{path}:{n}", record) for n, record in read_json_lines(path, issues))
    else:
        data = read_json(path, issues)
        if not isinstance(data, list):
            raise UserError(f"{path}: expected a list of questions, got {type(data).__name__}")
        records = ((f"{path}: record {n}", record) for n, record in enumerate(data))
    questions, seen = [], set()
    for number, (where, record) in enumerate(records):
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: expected an object, got {type(record).__name__}")
        question = _read(record, kind, number, where, issues)
        if question is None:
            continue
        if question.question_id in seen:
            raise UserError(f"{where}: duplicate id {question.question_id!r}: ids must be unique")
        seen.add(question.question_id)
        questions.append(question)
    if not questions:
        reasons = "; ".join(issues.lines())
        raise UserError(f"{path} contains no questions{': ' + reasons if reasons else ''}")
    return questions


def _read(record: Mapping[str, Any], kind: str, number: int, where: str, issues: DataIssues) -> Question | None:
    """The question of a record; None if it has no answer, which is counted in `issues`."""
    values = {key.lower(): value for key, value in reversed(list(record.items())) if value is not None}
    if values.get("answerable") is False:
        issues.add(UNANSWERABLE, where)
        return None
    text = next((values[key] for key in QUESTION_KEYS if key in values), None)
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"{where}: no question: expected the key {_either(QUESTION_KEYS)}, got {', '.join(record) or 'no keys'}"
        )
    key = next((one for one in ANSWER_KEYS if one in values), None)
    if key is None and not any(one.lower() in ANSWER_KEYS for one in record):
        raise UserError(f"{where}: no answer: expected the key {_either(ANSWER_KEYS)}, got {', '.join(record)}")
    golden = [*_texts(values.get(key or ""), where), *_texts(values.get("answer_aliases"), where)]
    usable = tuple(dict.fromkeys(one for one in golden if normalize(one)))
    if any(one.strip() and not normalize(one) for one in golden):
        issues.add(DROPPED_ANSWER, where)
    if not usable:
        issues.add(NO_ANSWER, where)
        return None
    name = next((str(values[one]) for one in _ID_KEYS if one in values), str(number))
    return Question(name, text.strip(), usable, kind, _supporting(record))


def _either(keys: Sequence[str]) -> str:
    return " or ".join(f"`{key}`" for key in keys)


def _texts(value: Any, where: str) -> list[str]:
    """A string or a list of strings as a list, without nulls. Raises `UserError` for anything else."""
    texts = value if isinstance(value, list) else [value]
    found = [one for one in texts if one is not None]
    if not all(isinstance(one, str) for one in found):
        raise UserError(f"{where}: the golden answers are {str(value)[:80]!r}, expected a string or a list of strings")
    return found


def _supporting(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Titles of a record's supporting passages, in order and without duplicates."""
    facts = record.get("supporting_facts")
    if isinstance(facts, Mapping):  # the Hugging Face Hub's version of HotpotQA
        titles = facts.get("title")
    elif isinstance(record.get("paragraphs"), list):
        titles = [p.get("title") for p in record["paragraphs"] if isinstance(p, Mapping) and p.get("is_supporting")]
    else:
        titles = [fact[0] for fact in facts if isinstance(fact, list) and fact] if isinstance(facts, list) else []
    return tuple(dict.fromkeys(str(title) for title in titles or () if title is not None))


def parse_source(spec: str) -> tuple[Path, float | None]:
    """Parses `FILE` or `FILE:WEIGHT`. Raises `UserError` for a weight that is not positive.

    >>> parse_source("nq.jsonl:2")
    (PosixPath('nq.jsonl'), 2.0)
    """
    head, colon, tail = spec.rpartition(":")
    try:
        weight = float(tail) if colon else None
    except ValueError:
        return Path(spec), None
    if weight is None:
        return Path(spec), None
    if not 0 < weight < float("inf"):
        raise UserError(f"the weight of {head} is {tail}, expected a number above 0")
    return Path(head), weight


def load_mixture(specs: Sequence[str], issues: DataIssues | None = None) -> list[Question]:
    """The questions of several files, as one list.

    With weights, each file's share of the list is its weight divided by the sum of the weights (default weight: 1);
    without any, every question is in the list once. The list is the shortest that contains every question, so that the
    questions of a file whose weight exceeds its share of the questions are repeated. `issues` counts the records that
    are changed or skipped. Raises `UserError` for a file that cannot be read or is listed twice.
    """
    sources = [parse_source(spec) for spec in specs]
    paths = [path for path, _ in sources]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is listed twice: give it a larger weight instead, as in {path}:2")
    parts = [load_questions(path, issues) for path in paths]
    if all(weight is None for _, weight in sources):
        return [question for part in parts for question in part]
    weights = np.array([1.0 if weight is None else weight for _, weight in sources])
    total = max(len(part) / share for part, share in zip(parts, weights / weights.sum(), strict=True))
    mixed: list[Question] = []
    for number, (part, share) in enumerate(zip(parts, weights / weights.sum(), strict=True)):
        rounds, rest = divmod(round(share * total), len(part))
        extra = np.random.default_rng([number, len(part)]).permutation(len(part))[:rest]
        mixed += part * rounds + [part[int(i)] for i in extra]
    return mixed
