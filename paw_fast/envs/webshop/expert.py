"""Implements the expert for WebShop, which sees only the observations of the episode.

The expert reads the instruction and the pages, never the goal. It searches with all that was asked for, takes the first
result that it has not looked at, goes back when an option is not offered, chooses the options and buys. (Choosing by
words in the titles wins less on the official products: the search engine knows more than titles.) In an episode with an
early answer it searches with the last two words, never goes back, and sometimes picks a wrong option.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from paw_fast.envs.base import BaseExpert
from paw_fast.envs.webshop.generate import ASIN_LETTERS
from paw_fast.envs.webshop.pages import BACK, NEXT, SEPARATOR
from paw_fast.types import Observation

_LIMIT = re.compile(r", and price lower than ([\d.]+) dollars$")
_NAME = r"(?:(?! with )[a-z ])+"
_OPTION = re.compile(rf"(?: with |, and )({_NAME}): ((?:(?!, and {_NAME}: ).)+)")
_WORD = re.compile(r"[\w'.-]+")
_FILLER = frozenset(["find", "me", "with", "for", "and", "the", "a"])
_MAX_VISITS = 3


@dataclass(frozen=True)
class ParsedGoal:
    """A parsed instruction: the words that describe the product, the options, the price limit in dollars.

    >>> parse_goal("Find me slim fit mugs with color: red, and size: x-large, and price lower than 20.00 dollars")
    ParsedGoal(words=('slim', 'fit', 'mugs'), options=('red', 'x-large'), limit=20.0)
    """

    words: tuple[str, ...]
    options: tuple[str, ...]
    limit: float


def parse_goal(instruction: str) -> ParsedGoal:
    """Parses a synthetic instruction; all words of any other instruction count as describing the product."""
    text = instruction.strip()
    limit = float("inf")
    if found := _LIMIT.search(text):
        limit, text = float(found[1]), text[: found.start()]
    options = tuple(value.strip() for _, value in _OPTION.findall(text))
    first = _OPTION.search(text)
    thing = text[: first.start()] if first else text
    found_words = (word.lower() for word in _WORD.findall(thing))
    return ParsedGoal(tuple(word for word in found_words if word not in _FILLER), options, limit)


@dataclass(frozen=True)
class _Result:
    asin: str
    title: str
    price: float


def read_results(text: str) -> list[_Result]:
    """The products of a results page in `text` form; a range counts by its lower end."""
    segments = text.split(SEPARATOR)
    rest = segments[segments.index(NEXT) + 1 :] if NEXT in segments else []
    found = []
    for asin, title, tag in zip(rest[::3], rest[1::3], rest[2::3], strict=False):
        price = re.search(r"\$([\d.]+)", tag)
        found.append(_Result(asin.lower(), title.lower(), float(price[1]) if price else 0.0))
    return found


class Shopper(BaseExpert):
    """Acts on the pages in `text` form.

    early_answer_prob: the chance that an episode has an early answer. mistake_prob: in those, the chance of a wrong
    option. share: what `early_answer_share` is, where early_answer_prob is not 0.
    """

    def __init__(
        self, early_answer_prob: float = 0.0, rng: random.Random | None = None, mistake_prob: float = 0.2,
        share: float = 1.0,
    ) -> None:  # fmt: skip
        self._rng = rng or random.Random(0)
        self._early_answer_prob, self._mistake_prob = early_answer_prob, mistake_prob
        self.early_answer_share = share if early_answer_prob else 0.0
        self._used_words: set[str] = set()

    @property
    def token_pattern(self) -> str:
        """Words that the expert has used so far, with the space before them and, in commands and quotes, without it;
        the start of a click; the pieces of generated asins."""
        words = "|".join(map(re.escape, sorted(self._used_words, key=lambda word: (-len(word), word))))
        used = [rf"(?: |(?<=['\[]))(?:{words})(?![\w-])"] if words else []
        return "|".join((*used, rf"[{ASIN_LETTERS.lower()}]\d(?=[\]{ASIN_LETTERS.lower()}])", r"click\["))

    def reset(self, observation: Observation) -> None:
        """Starts an episode with its instruction."""
        self._goal = parse_goal(observation.task)
        self.answered_early = self._early_answer_prob > 0 and self._rng.random() < self._early_answer_prob
        self._visited: list[str] = []
        self._left: list[str] | None = None

    def act(self, observation: Observation) -> str:
        """Returns the next command on this page."""
        command = self._choose(observation)
        self._used_words.update(re.findall(r"(?<=[ \[])[a-z][a-z-]+(?=[] ])", command))
        return command

    def is_useless(self, command: str, observation: Observation) -> bool:
        """Whether a click is not possible on the page; a search always has an effect."""
        return command.startswith("click[") and command not in observation.admissible

    def _choose(self, observation: Observation) -> str:
        buttons = [one[6:-1] for one in observation.admissible if one.startswith("click[")]
        if "buy now" in buttons:
            return self._on_item(buttons)
        if BACK.lower() in buttons:
            return self._on_results(observation.text, buttons)
        words = (*self._goal.words, *self._goal.options) if not self.answered_early else self._goal.words[-2:]
        return f"search[{' '.join(words)}]"

    def _on_results(self, text: str, buttons: list[str]) -> str:
        results = [one for one in read_results(text) if one.asin not in self._visited]
        if not results:
            return f"click[{BACK.lower()}]" if "< prev" in buttons else f"click[{NEXT.lower()}]"
        self._visited.append(results[0].asin)
        self._left = None
        return f"click[{results[0].asin}]"

    def _on_item(self, buttons: list[str]) -> str:
        if self._left is None:
            offered = [value for value in self._goal.options if value in buttons]
            if not self.answered_early and len(offered) < len(self._goal.options) and len(self._visited) < _MAX_VISITS:
                return "click[< prev]"
            self._left = self._with_mistakes(offered, buttons) if self.answered_early else offered
        return f"click[{self._left.pop(0)}]" if self._left else "click[buy now]"

    def _with_mistakes(self, offered: list[str], buttons: list[str]) -> list[str]:
        """The options, some of them replaced by another that the page offers."""
        others = buttons[buttons.index("buy now") + 1 :]
        return [self._rng.choice(others) if self._rng.random() < self._mistake_prob else value for value in offered]
