"""Demonstrates search: follows facts through the passages of the generated world, and on published questions searches
for the supporting titles and gives the known answer."""

from __future__ import annotations

import random
import re

from paw_fast.envs.base import BaseExpert
from paw_fast.envs.search_qa.synthetic_facts import parse_question, read_fact
from paw_fast.envs.search_qa.synthetic_names import TRADES
from paw_fast.types import Observation

_COPIED_WORDS = " (?:" + "|".join(("[A-Z][a-z]+", r"\d{4}", *TRADES)) + r")(?!\w)"
_DOC = re.compile(r"Doc \d+\(Title: ([^)]*)\) (.*)")


def read_documents(text: str) -> dict[str, str]:
    """Title and text of every passage in an observation.

    >>> read_documents("<information>Doc 1(Title: Torvik) Torvik lies in Morland.</information>")
    {'Torvik': 'Torvik lies in Morland.'}
    """
    body = text.removeprefix("<information>").removesuffix("</information>")
    return {m.group(1): m.group(2) for line in body.split("\n") if (m := _DOC.fullmatch(line))}


class SearchExpert(BaseExpert):
    """Answers questions from the passages that the episode has shown.

    It follows the question's chain of facts: searches for an entity, reads the next one in that entity's passage, and
    answers at the end of the chain. Published questions come with notes for the expert (`Observation.notes`): there it
    searches for the supporting titles, or the question itself, and gives the golden answer.

    early_answer_prob: the chance, in each turn, that it answers with the entity that it has reached though the chain
    goes on (asked for the author's birthplace, it answers with the author). rng: decides that. share: what
    `early_answer_share` is, where that chance is not 0.
    """

    def __init__(self, early_answer_prob: float = 0.0, rng: random.Random | None = None, share: float = 1.0):
        self._early_answer_prob, self._rng = early_answer_prob, rng or random.Random(0)
        self.early_answer_share = share if early_answer_prob else 0.0

    @property
    def token_pattern(self) -> str:
        """Words after a space that are copied from passages: names, years and trades."""
        return _COPIED_WORDS

    def is_useless(self, command: str, observation: Observation) -> bool:
        """Whether the command is a search: it costs a turn, while an answer would end the episode."""
        return command.startswith("search[")

    def reset(self, observation: Observation) -> None:
        """Starts an episode. Raises `ValueError` for a question that is neither generated nor has notes."""
        self._seen: dict[str, str] = {}
        self.answered_early = False
        self._notes: list[str] | None = None
        self._at, self._chain = "", ()
        if notes := observation.notes:
            titles = tuple(notes["supporting"]) or (observation.text,)
            self._notes = [*(f"search[{title}]" for title in titles), f"answer[{notes['golden'][0]}]"]
        elif found := parse_question(observation.text):
            self._at, self._chain = found
        else:
            raise ValueError(f"not a question this expert knows: {observation.text!r}")

    def act(self, observation: Observation) -> str:
        """Returns the next command."""
        if self._notes is not None:
            return self._notes.pop(0)
        self._seen |= read_documents(observation.text)
        while self._chain and self._at in self._seen:
            value = read_fact(self._seen[self._at], self._at, self._chain[0])
            if value is None:
                break
            self._at, self._chain = value, self._chain[1:]
            if self._chain and self._early_answer_prob > 0 and self._rng.random() < self._early_answer_prob:
                self.answered_early = True
                return f"answer[{self._at}]"
        return f"search[{self._at}]" if self._chain else f"answer[{self._at}]"
