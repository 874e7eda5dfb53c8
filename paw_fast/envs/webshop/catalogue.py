"""What all episodes of a process share: the catalogue, its goals, the search engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from paw_fast.envs.webshop.goals import Goals
from paw_fast.envs.webshop.product_store import ProductStore
from paw_fast.envs.webshop.records import Goal, Product
from paw_fast.envs.webshop.reward import RewardParts, score
from paw_fast.envs.webshop.search import NUM_RESULTS
from paw_fast.errors import UserError
from paw_fast.types import Task

VALIDATION_GOALS = 500
"""Goals 0 to 499 are held out (verl-agent); the original splits also hold 500 to 1499."""

SPLITS = {
    "train": (VALIDATION_GOALS, None), "unseen": (0, VALIDATION_GOALS), "val": (0, VALIDATION_GOALS),
    "test": (0, 500), "eval": (500, 1500), "train_original": (1500, None),
}  # fmt: skip
"""Ranges of goal numbers: `train` and `val` (also `unseen`) as in verl-agent, the other three as in WebShop."""


class GoalTasks(Sequence[Task]):
    """The tasks of a split, made when they are asked for: the full catalogue has millions of goals.

    `numbers` of the goals rise, and tell the goals apart: the split `train` leaves out repetitions of held-out goals.
    """

    def __init__(self, goals: Goals, numbers: np.ndarray, split: str) -> None:
        self._goals, self._numbers, self._split = goals, numbers, split

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Task: ...
    @overload
    def __getitem__(self, at: slice) -> GoalTasks: ...
    def __getitem__(self, at: int | slice) -> Task | GoalTasks:
        if isinstance(at, slice):
            return GoalTasks(self._goals, self._numbers[at], self._split)
        number = int(self._numbers[at])
        kind = re.sub(r"[^A-Za-z0-9_]+", "_", self._goals[number].category) or "other"
        name = f"{self._goals.kind}-{self._goals.seed}-{number}"
        return Task(name, "webshop", self._split, kind, info={"goal": number})

    def contains(self, task: Task) -> bool:
        """Whether a task of the same catalogue is one of these."""
        number = task.info.get("goal")
        at = int(np.searchsorted(self._numbers, number)) if isinstance(number, int) else len(self._numbers)
        return at < len(self._numbers) and int(self._numbers[at]) == number

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class Catalogue:
    """Read-only; `search` gives asins for a query, best first, and a test can replace it.

    With `hold_out_products`, training leaves out every goal of a product that a held-out goal is about.
    """

    store: ProductStore
    goals: Goals
    search: Callable[[str], Sequence[int]] | Callable[[str], Sequence[str]]
    show_attributes: bool = False
    hold_out_products: bool = False
    _splits: dict[str, GoalTasks] = field(default_factory=dict)

    def results(self, query: str) -> list[int]:
        """Rows of the products found, at most 50; asins that are not in the catalogue are passed over."""
        found = [self.store.row(one) if isinstance(one, str) else one for one in self.search(query)]
        return [row for row in found if row is not None][:NUM_RESULTS]

    def product(self, asin: str) -> Product:
        """A product that a page has shown."""
        row = self.store.row(asin)
        assert row is not None, asin
        return self.store[row]

    def judge(self, goal: Goal, asin: str, options: Mapping[str, str]) -> RewardParts:
        """The reward of buying a product, at the price that it is sold at."""
        row = self.store.row(asin)
        assert row is not None, asin
        return score(goal, self.store[row], options, float(self.goals.prices[row]))

    def tasks(self, split: str) -> GoalTasks:
        """The tasks of a split in their order. Raises `UserError` for a split that does not exist or has no goal."""
        if split not in SPLITS:
            raise UserError(f"webshop has no split {split!r}: choose {', '.join(SPLITS)}")
        if split in self._splits:
            return self._splits[split]
        first, last = SPLITS[split]
        numbers = np.arange(first, len(self.goals) if last is None else min(last, len(self.goals)))
        if last is None and len(numbers):
            numbers = self.goals.without(numbers, np.arange(first), self.hold_out_products)
        if not len(numbers):
            raise UserError(
                f"the split {split} has no goal: the catalogue has {len(self.goals)} {self.goals.kind} goals, of which "
                f"the first {first} are held out; take more products"
            )
        return self._splits.setdefault(split, GoalTasks(self.goals, numbers, split))
