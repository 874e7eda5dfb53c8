"""Samples the tasks that a step trains on: reproducibly, and every training task once before any comes again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paw_fast.errors import UserError
from paw_fast.types import Task


class TaskSampler:
    """Draws tasks in an order that depends on nothing but the seed and the number of tasks drawn before.

    >>> sampler = TaskSampler([Task("a"), Task("b")], seed=0)
    >>> sorted(t.task_id for t in sampler.draw(2))
    ['a', 'b']
    """

    def __init__(self, tasks: Sequence[Task], seed: int):
        if not tasks:
            raise UserError("there are no training tasks: check --env.data and --env.num-train")
        self.tasks, self.seed, self.drawn = tasks, seed, 0

    def draw(self, count: int) -> list[Task]:
        """The next `count` tasks."""
        out: list[Task] = []
        while len(out) < count:
            epoch, at = divmod(self.drawn, len(self.tasks))
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.tasks))
            take = order[at : at + count - len(out)]
            out.extend(self.tasks[int(i)] for i in take)
            self.drawn += len(take)
        return out

    def state(self) -> dict[str, int]:
        """The state that `restore` continues from, as plain values."""
        return {"drawn": self.drawn, "seed": self.seed, "num_tasks": len(self.tasks)}

    def restore(self, state: dict[str, int]) -> None:
        """Continues from a saved state. Raises `UserError` when the number of tasks is not the same."""
        if state["num_tasks"] != len(self.tasks):
            raise UserError(
                f"the checkpoint was made with {state['num_tasks']} training tasks, now there are {len(self.tasks)}: "
                "resume with the same --env settings and data"
            )
        self.drawn, self.seed = state["drawn"], state["seed"]
