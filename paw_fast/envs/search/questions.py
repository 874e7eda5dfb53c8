"""Questions as they are published, and mixtures of several files.

.jsonl   FlashRAG {"id", "question", "golden_answers"}; MuSiQue {"id", "question", "answer", "answer_aliases",
         "paragraphs", "answerable"} (those without an answer are left out)
.json    HotpotQA and 2WikiMultihopQA: a list of {"_id", "question", "answer", "type", "supporting_facts", "context"}
Either may be gzipped (.gz).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paw_fast.retrieval.corpus import kind_of, read_json, read_json_lines
from paw_fast.types import UserError


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


def load_questions(path: Path) -> list[Question]:
    """All questions of a file. Raises `UserError` naming file and place for what is no question, and for an id
    that comes twice."""
    kind = re.sub(r"[^A-Za-z0-9_-]+", "_", re.sub(r"\.jsonl?(\.gz)?$", "", path.name)).strip("_") or "questions"
    if kind_of(path) == "jsonl":
        records: Iterator[tuple[str, Any]] = ((f"{path}:{n}", record) for n, record in read_json_lines(path))
    else:
        data = read_json(path)
        if not isinstance(data, list):
            raise UserError(f"{path}: expected a list of questions, got {type(data).__name__}")
        records = ((f"{path}: record {n}", record) for n, record in enumerate(data))
    questions, seen = [], set()
    for number, (where, record) in enumerate(records):
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: expected an object, got {type(record).__name__}")
        if record.get("answerable") is False:
            continue
        question = _read(record, kind, number, where)
        if question.question_id in seen:
            raise UserError(f"{where}: the id {question.question_id!r} comes twice: ids must be unique")
        seen.add(question.question_id)
        questions.append(question)
    if not questions:
        raise UserError(f"{path} holds no questions")
    return questions


def _read(record: Mapping[str, Any], kind: str, number: int, where: str) -> Question:
    text = record.get("question")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: no `question`")
    golden = record.get("golden_answers")
    if golden is None:
        if not isinstance(record.get("answer"), str | list):
            raise UserError(f"{where}: neither `golden_answers` nor `answer`")
        first = record["answer"]
        golden = [*(first if isinstance(first, list) else [first]), *(record.get("answer_aliases") or [])]
    golden = [golden] if isinstance(golden, str) else golden
    if not isinstance(golden, list) or not golden or not all(isinstance(one, str) and one.strip() for one in golden):
        raise UserError(f"{where}: the golden answers are {golden!r}, expected a list of texts")
    name = str(record.get("id", record.get("_id", number)))
    return Question(name, text.strip(), tuple(dict.fromkeys(golden)), kind, _supporting(record))


def _supporting(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Titles of the passages that a record names as its evidence, each once, in its order."""
    facts = record.get("supporting_facts")
    if isinstance(facts, Mapping):  # the hub's version of HotpotQA
        titles = facts.get("title")
    elif isinstance(record.get("paragraphs"), list):
        titles = [p.get("title") for p in record["paragraphs"] if isinstance(p, Mapping) and p.get("is_supporting")]
    else:
        titles = [fact[0] for fact in facts if isinstance(fact, list) and fact] if isinstance(facts, list) else []
    return tuple(dict.fromkeys(str(title) for title in titles or ()))


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


def load_mixture(specs: Sequence[str]) -> list[Question]:
    """The questions of several files. With weights, each file's share of the list is its weight's share of their sum
    (a file without one weighs 1); without any, every question stands in the list once.

    The list is as long as it takes for every file to be in it whole, so that a file with a larger weight than its
    size has its questions repeated. Raises `UserError` for a file that cannot be read or is named twice.
    """
    sources = [parse_source(spec) for spec in specs]
    paths = [path for path, _ in sources]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is named twice: give it a larger weight instead, as in {path}:2")
    parts = [load_questions(path) for path in paths]
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
