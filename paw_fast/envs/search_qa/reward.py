"""Scores answers: exact match, substring match and token F1 after SQuAD's normalization.

Exact match and the normalization follow SQuAD's evaluation script as used by Search-R1; F1 follows HotpotQA's, which
gives 0 when either side is "yes", "no" or "noanswer" and the two differ. All functions are pure functions of strings.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


@dataclass(frozen=True)
class AnswerScores:
    """How good an answer is, each between 0 and 1. Produced by `score`, consumed by the environment.

    >>> score("The Eiffel Tower!", ["Eiffel Tower"])
    AnswerScores(exact_match=1.0, sub_match=1.0, f1=1.0)
    """

    exact_match: float
    sub_match: float
    f1: float


def normalize(text: str) -> str:
    """Lower-cases, removes ASCII punctuation and articles, and collapses spaces; other signs (dashes, accents) stay.

    >>> normalize("The  Answer's a 'Yes'.")
    'answers yes'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golden: Sequence[str]) -> bool:
    """Whether the normalized answer equals any normalized golden answer; an empty answer never matches.

    >>> exact_match("the", ["a", "..."])
    False
    """
    normalized = normalize(answer)
    return bool(normalized) and any(normalized == normalize(one) for one in golden)


def sub_match(answer: str, golden: Sequence[str]) -> bool:
    """Whether any normalized golden answer is a substring of the normalized answer; empty ones never match."""
    normalized = normalize(answer)
    return any(one in normalized for one in map(normalize, golden) if one)


def token_f1(answer: str, golden: Sequence[str]) -> float:
    """The largest F1 over the golden answers, of the multisets of normalized words.

    If either side is "yes", "no" or "noanswer", the F1 is 0 unless both are equal.

    >>> round(token_f1("Barack Obama", ["President Barack Hussein Obama"]), 3)
    0.667
    """
    return max((_f1(normalize(answer), normalize(one)) for one in golden), default=0.0)


def _f1(answer: str, golden: str) -> float:
    if answer != golden and not _CLOSED_ANSWERS.isdisjoint((answer, golden)):
        return 0.0
    answer_words, golden_words = answer.split(), golden.split()
    common = sum((Counter(answer_words) & Counter(golden_words)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(answer_words), common / len(golden_words)
    return 2 * precision * recall / (precision + recall)


def score(answer: str | None, golden: Sequence[str]) -> AnswerScores:
    """All three scores of an answer; None (no answer was given) scores 0 throughout."""
    if answer is None:
        return AnswerScores(0.0, 0.0, 0.0)
    return AnswerScores(float(exact_match(answer, golden)), float(sub_match(answer, golden)), token_f1(answer, golden))


def last_answer(text: str) -> str | None:
    """The text between the last `<answer>` and the next `</answer>`; None if there is no such pair.

    `text` is the policy's output without the prompt, so that the example in the prompt is never taken for an answer.

    >>> last_answer("<answer> Beijing </answer> no: <answer> Nanjing </answer>")
    'Nanjing'
    """
    found = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else None
