"""Shows how far the episodes of a rollout or an evaluation are: finished ones, and turns of those in flight."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from paw_fast.config import TrainConfig
from paw_fast.rollout.worker import RolloutWorker
from paw_fast.runs.progress import Phase, phase
from paw_fast.types import Trajectory

REFRESH_S = 0.1


class RolloutProgress:
    """Advances a phase after each poll of a worker, at most every `REFRESH_S`.

    phase      its total is the number of episodes; an episode in flight counts by its share of `max_steps` turns
    step       training step of the episodes, or `EVALUATION`

    Call it with the episodes that have ended since the last call.
    """

    def __init__(self, phase: Phase, worker: RolloutWorker, step: int, max_steps: int) -> None:
        self.phase, self.worker, self.step, self.max_steps = phase, worker, step, max_steps
        self.finished = self.turns = 0
        self._shown_s = float("-inf")
        self.show()

    def __call__(self, ended: Sequence[Trajectory]) -> None:
        self.finished += len(ended)
        self.turns += sum(len(t.transitions) for t in ended)
        if time.monotonic() - self._shown_s >= REFRESH_S:
            self.show()

    def show(self) -> None:
        """Puts the counts into the phase."""
        self._shown_s = time.monotonic()
        in_flight, turns = self.worker.in_flight().get(self.step, (0, 0))
        total = int(self.phase.total or 0)
        if self.finished >= total:  # with dynamic sampling another round has begun
            total = max(total, self.finished + in_flight)
            self.phase.total = total
        in_flight = min(in_flight, total - self.finished)  # workers report once a second
        self.phase.done = self.finished + min(in_flight, turns / self.max_steps)
        self.phase.counts = (
            f"{self.turns + (turns if in_flight else 0):,} turns, {self.finished}/{total} episodes, "
            f"{in_flight} in flight"
        )


@contextmanager
def rollout_phase(worker: RolloutWorker, step: int, config: TrainConfig) -> Iterator[RolloutProgress]:
    """Context manager that shows the rollout of the training step `step`, counted from 0."""
    total = config.rollout.groups * config.rollout.group_size
    with phase("rollout", total, "episodes", name=f"rollout of step {step + 1}") as shown:
        yield RolloutProgress(shown, worker, step, config.env.max_steps)
