"""Defines the data shared by all WebShop episodes of a process: products, goals and search engine."""

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
"""Goals 0 to 499 are held out, as in verl-agent; WebShop's original splits also hold out 500 to 1499."""

SPLITS = {
    "train": (VALIDATION_GOALS, None), "unseen": (0, VALIDATION_GOALS), "val": (0, VALIDATION_GOALS),
    "test": (0, 500), "eval": (500, 1500), "train_original": (1500, None),
}  # fmt: skip
"""Ranges of goal numbers: `train` and `val` (alias `unseen`) as in verl-agent, the other three as in WebShop."""


class GoalTasks(Sequence[Task]):
    """The tasks of a split, created on access: the full catalogue has millions of goals.

    `numbers` are the goals' numbers in ascending order. They have gaps: `train` excludes duplicates of held-out goals.
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
        """Whether a task of the same catalogue belongs to this split."""
        number = task.info.get("goal")
        at = int(np.searchsorted(self._numbers, number)) if isinstance(number, int) else len(self._numbers)
        return at < len(self._numbers) and int(self._numbers[at]) == number

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class Catalogue:
    """Products, goals and search engine of a WebShop. Read-only, shared by all episodes.

    search: returns rows or asins for a query, best first. show_attributes: whether item pages link to the product's
    attributes. hold_out_products: the training split excludes all goals of products that a held-out goal is about.
    """

    product_store: ProductStore
    goals: Goals
    search: Callable[[str], Sequence[int]] | Callable[[str], Sequence[str]]
    show_attributes: bool = False
    hold_out_products: bool = False
    _splits: dict[str, GoalTasks] = field(default_factory=dict)

    def results(self, query: str) -> list[int]:
        """Rows of at most 50 products found, best first; asins that are not in the catalogue are ignored."""
        found = [self.product_store.row(one) if isinstance(one, str) else one for one in self.search(query)]
        return [row for row in found if row is not None][:NUM_RESULTS]

    def product(self, asin: str) -> Product:
        """The product with this asin, which must be in the catalogue."""
        row = self.product_store.row(asin)
        assert row is not None, asin
        return self.product_store[row]

    def score_purchase(self, goal: Goal, asin: str, options: Mapping[str, str]) -> RewardParts:
        """The reward of buying a product with these options at its sampled price."""
        row = self.product_store.row(asin)
        assert row is not None, asin
        return score(goal, self.product_store[row], options, float(self.goals.prices[row]))

    def tasks(self, split: str) -> GoalTasks:
        """The tasks of a split in a fixed order. Raises `UserError` if the split does not exist or has no goals."""
        if split not in SPLITS:
            raise UserError(f"webshop has no split {split!r}: choose {', '.join(SPLITS)}")
        if split in self._splits:
            return self._splits[split]
        first, last = SPLITS[split]
        numbers = np.arange(first, len(self.goals) if last is None else min(last, len(self.goals)))
        if last is None and len(numbers):
            numbers = self.goals.exclude_held_out(numbers, np.arange(first), self.hold_out_products)
        if not len(numbers):
            raise UserError(
                f"the split {split} has no goals: the catalogue has {len(self.goals)} {self.goals.kind} goals, and the "
                f"first {first} are held out; increase --env.num-products"
            )
        return self._splits.setdefault(split, GoalTasks(self.goals, numbers, split))
