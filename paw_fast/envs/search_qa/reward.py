"""How an answer is judged: exact match, sub-string match and token F1 after the usual normalisation.

Exact match and the normalisation are those of SQuAD's evaluation as Search-R1 uses them; F1 is HotpotQA's, which
gives nothing for a yes, no or noanswer that does not match. Pure functions of strings.
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
    """Lower case, no ASCII punctuation, no articles, single spaces. Other signs (dashes, accents) stay.

    >>> normalize("The  Answer's a 'Yes'.")
    'answers yes'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golden: Sequence[str]) -> bool:
    """Whether the answer equals any of the golden ones once both are normalised (an empty one never does).

    >>> exact_match("the", ["a", "..."])
    False
    """
    said = normalize(answer)
    return bool(said) and any(said == normalize(one) for one in golden)


def sub_match(answer: str, golden: Sequence[str]) -> bool:
    """Whether any golden answer stands inside the answer once both are normalised (an empty one never does)."""
    said = normalize(answer)
    return any(one in said for one in map(normalize, golden) if one)


def token_f1(answer: str, golden: Sequence[str]) -> float:
    """Largest F1 of the normalised words over the golden answers.

    A yes, no or noanswer on either side counts only when both are the same.

    >>> round(token_f1("Barack Obama", ["President Barack Hussein Obama"]), 3)
    0.667
    """
    return max((_f1(normalize(answer), normalize(one)) for one in golden), default=0.0)


def _f1(said: str, golden: str) -> float:
    if said != golden and not _CLOSED_ANSWERS.isdisjoint((said, golden)):
        return 0.0
    words, wanted = said.split(), golden.split()
    common = sum((Counter(words) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def score(answer: str | None, golden: Sequence[str]) -> AnswerScores:
    """All three scores of an answer; None (no answer was given) scores 0 throughout."""
    if answer is None:
        return AnswerScores(0.0, 0.0, 0.0)
    return AnswerScores(float(exact_match(answer, golden)), float(sub_match(answer, golden)), token_f1(answer, golden))


def last_answer(text: str) -> str | None:
    """What stands between the last `<answer>` and the `</answer>` after it; None where there is no such pair.

    The text is what the policy wrote, without its prompt, so the prompt's example is never taken for an answer.

    >>> last_answer("<answer> Beijing </answer> no: <answer> Nanjing </answer>")
    'Nanjing'
    """
    found = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else None
