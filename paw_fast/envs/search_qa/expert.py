"""Who is imitated: on the generated world a reader of passages, on published questions a teacher with the answers."""

from __future__ import annotations

import random
import re

from paw_fast.envs.search_qa.synthetic_facts import parse_question, read_fact
from paw_fast.envs.search_qa.synthetic_names import TRADES
from paw_fast.types import Observation

_DOC = re.compile(r"Doc \d+\(Title: ([^)]*)\) (.*)")


def read_documents(text: str) -> dict[str, str]:
    """Title and text of every passage in an observation.

    >>> read_documents("<information>Doc 1(Title: Torvik) Torvik lies in Morland.</information>")
    {'Torvik': 'Torvik lies in Morland.'}
    """
    body = text.removeprefix("<information>").removesuffix("</information>")
    return {m.group(1): m.group(2) for line in body.split("\n") if (m := _DOC.fullmatch(line))}


class SearchExpert:
    """Plays from what the episode has shown. `reset(first observation)`, then `act(observation)` each turn.

    It follows the question's chain of facts: looks up the entity it stands at, reads the next one in that entity's
    passage, and answers at the end of the chain. Published questions come with a teacher's notes (`info["teacher"]`):
    there it looks up the supporting titles, or the question itself, and gives the golden answer.

    `early_answer_prob` is the chance, in each turn, that it gives the entity it has come to as the answer
    though the chain goes on: who asked for the author's birthplace is told the author. `rng`
    decides; `hasty` says whether it did so.
    """

    noop_prob = None
    """There is no command that does nothing."""
    names = " (?:" + "|".join(("[A-Z][a-z]+", r"\d{4}", *TRADES)) + r")(?!\w)"
    """Words that a tokenizer should keep whole, after a space: names, years and trades, which are what is copied."""

    @staticmethod
    def is_slip(command: str, observation: Observation) -> bool:
        """A search for something else does no harm but costs a turn; an answer would end the episode."""
        return command.startswith("search[")

    def __init__(self, early_answer_prob: float = 0.0, rng: random.Random | None = None):
        self._haste, self._rng, self.hasty = early_answer_prob, rng or random.Random(0), False

    def reset(self, observation: Observation) -> None:
        """Reads the question. Raises `ValueError` for one that is neither generated nor comes with notes."""
        self._seen: dict[str, str] = {}
        self._num_hops, self.hasty = 0, False
        self._notes: list[str] | None = None
        self._at, self._chain = "", ()
        if notes := observation.info.get("teacher"):
            titles = tuple(notes["supporting"]) or (observation.text,)
            self._notes = [*(f"search[{title}]" for title in titles), f"answer[{notes['golden'][0]}]"]
        elif found := parse_question(observation.text):
            self._at, self._chain = found
        else:
            raise ValueError(f"not a question this expert knows: {observation.text!r}")

    def act(self, observation: Observation) -> str:
        """The next command."""
        if self._notes is not None:
            return self._notes.pop(0)
        self._seen |= read_documents(observation.text)
        while self._chain and self._at in self._seen:
            value = read_fact(self._seen[self._at], self._at, self._chain[0])
            if value is None:
                break
            self._at, self._chain, self._num_hops = value, self._chain[1:], self._num_hops + 1
            if self._chain and self._haste > 0 and self._rng.random() < self._haste:
                self.hasty = True
                return f"answer[{self._at}]"
        return f"search[{self._at}]" if self._chain else f"answer[{self._at}]"
