"""Reads question files as they are published, and mixtures of several files.

A file holds one JSON object a line (.jsonl) or a JSON list of them (.json), either gzipped or not (.gz):

FlashRAG          {"id", "question", "golden_answers"}
MuSiQue           {"id", "question", "answer", "answer_aliases", "paragraphs", "answerable"}
HotpotQA, 2Wiki   {"_id", "question", "answer", "type", "supporting_facts", "context"}
others            any of `QUESTION_KEYS` and `ANSWER_KEYS`, in upper or lower case; answers as one text or a list

Questions that are marked unanswerable, or have no answer that could be matched, are left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paw_fast.envs.json_files import ReadingNotes, read_json, read_json_lines
from paw_fast.envs.search_qa.retrieval.corpus import kind_of
from paw_fast.envs.search_qa.reward import normalize
from paw_fast.errors import UserError

QUESTION_KEYS = ("question", "query")
ANSWER_KEYS = ("golden_answers", "answers", "answer")
_ID_KEYS = ("id", "_id", "question_id", "qid")
NO_ANSWER = "no answer, left out"
UNANSWERABLE = "the mark `answerable: false`, left out"
DROPPED_ANSWER = "an answer of which normalisation leaves nothing: that answer is not used"


@dataclass(frozen=True)
class Question:
    """A question and all answers that count as right. Produced by loaders and by the generated world.

    kind        what results are counted under: the file's name, or the number of hops
    supporting  titles of the passages that hold the answer, in order, where the data set names them

    >>> Question("1", "Who wrote Emma?", ("Jane Austen", "Austen"), "nq").golden[0]
    'Jane Austen'
    """

    question_id: str
    text: str
    golden: tuple[str, ...]
    kind: str
    supporting: tuple[str, ...] = ()


def load_questions(path: Path, notes: ReadingNotes | None = None) -> list[Question]:
    """All questions of a file. Raises `UserError` naming file and place for what is no question, and for an id
    that comes twice. `notes` counts what is changed or left out."""
    notes = ReadingNotes() if notes is None else notes
    kind = re.sub(r"[^A-Za-z0-9_-]+", "_", re.sub(r"\.jsonl?(\.gz)?$", "", path.name)).strip("_") or "questions"
    if kind_of(path) == "jsonl":
        records: Iterable[tuple[str, Any]] = ((f"{path}:{n}", record) for n, record in read_json_lines(path, notes))
    else:
        data = read_json(path, notes)
        if not isinstance(data, list):
            raise UserError(f"{path}: expected a list of questions, got {type(data).__name__}")
        records = ((f"{path}: record {n}", record) for n, record in enumerate(data))
    questions, seen = [], set()
    for number, (where, record) in enumerate(records):
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: expected an object, got {type(record).__name__}")
        question = _read(record, kind, number, where, notes)
        if question is None:
            continue
        if question.question_id in seen:
            raise UserError(f"{where}: the id {question.question_id!r} comes twice: ids must be unique")
        seen.add(question.question_id)
        questions.append(question)
    if not questions:
        said = "; ".join(notes.lines())
        raise UserError(f"{path} holds no questions{': ' + said if said else ''}")
    return questions


def _read(record: Mapping[str, Any], kind: str, number: int, where: str, notes: ReadingNotes) -> Question | None:
    """The question of a record; None, counted in `notes`, where it has no answer."""
    values = {key.lower(): value for key, value in reversed(list(record.items())) if value is not None}
    if values.get("answerable") is False:
        notes.note(UNANSWERABLE, where)
        return None
    text = next((values[key] for key in QUESTION_KEYS if key in values), None)
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"{where}: no question: expected {_either(QUESTION_KEYS)}, found {', '.join(record) or 'no key'}"
        )
    key = next((one for one in ANSWER_KEYS if one in values), None)
    if key is None and not any(one.lower() in ANSWER_KEYS for one in record):
        raise UserError(f"{where}: no answer: expected {_either(ANSWER_KEYS)}, found {', '.join(record)}")
    golden = [*_texts(values.get(key or ""), where), *_texts(values.get("answer_aliases"), where)]
    usable = tuple(dict.fromkeys(one for one in golden if normalize(one)))
    if any(one.strip() and not normalize(one) for one in golden):
        notes.note(DROPPED_ANSWER, where)
    if not usable:
        notes.note(NO_ANSWER, where)
        return None
    name = next((str(values[one]) for one in _ID_KEYS if one in values), str(number))
    return Question(name, text.strip(), usable, kind, _supporting(record))


def _either(keys: Sequence[str]) -> str:
    return " or ".join(f"`{key}`" for key in keys)


def _texts(value: Any, where: str) -> list[str]:
    """One text or a list of them, without what is missing. Raises `UserError` for anything else."""
    texts = value if isinstance(value, list) else [value]
    found = [one for one in texts if one is not None]
    if not all(isinstance(one, str) for one in found):
        raise UserError(f"{where}: the golden answers are {str(value)[:80]!r}, expected a text or a list of texts")
    return found


def _supporting(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Titles of the passages that a record names as its evidence, each once, in its order."""
    facts = record.get("supporting_facts")
    if isinstance(facts, Mapping):  # the hub's version of HotpotQA
        titles = facts.get("title")
    elif isinstance(record.get("paragraphs"), list):
        titles = [p.get("title") for p in record["paragraphs"] if isinstance(p, Mapping) and p.get("is_supporting")]
    else:
        titles = [fact[0] for fact in facts if isinstance(fact, list) and fact] if isinstance(facts, list) else []
    return tuple(dict.fromkeys(str(title) for title in titles or () if title is not None))


def parse_source(spec: str) -> tuple[Path, float | None]:
    """`FILE` or `FILE:WEIGHT`. Raises `UserError` for a weight that is not above 0.

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


def load_mixture(specs: Sequence[str], notes: ReadingNotes | None = None) -> list[Question]:
    """The questions of several files. With weights, each file's share of the list is its weight's share of their sum
    (a file without one weighs 1); without any, every question stands in the list once.

    The list is as long as it takes for every file to be in it whole, so that a file with a larger weight than its
    size has its questions repeated. `notes` counts what is changed or left out. Raises `UserError` for a file that
    cannot be read or is named twice.
    """
    sources = [parse_source(spec) for spec in specs]
    paths = [path for path, _ in sources]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is named twice: give it a larger weight instead, as in {path}:2")
    parts = [load_questions(path, notes) for path in paths]
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
