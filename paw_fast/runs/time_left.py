"""Estimates the time left, of a training run and of one phase."""

from __future__ import annotations

import statistics
from collections import deque

RECENT_STEPS = 15
"""Steps whose median predicts the next ones: episodes become shorter in training, so old ones predict badly."""


class TimeLeft:
    """Time left of a run of `total` steps that is evaluated every `eval_every` steps (0: at the end only).

    The steps left times the median of the recent steps, plus the evaluations left times the median of the evaluations:
    neither a slow first step nor a step with an evaluation moves the estimate.

    >>> left = TimeLeft(total=10, eval_every=5)
    >>> left.add_evaluation(30.0)
    >>> for seconds in (9.0, 2.0, 2.0):
    ...     left.add_step(seconds)
    >>> left.seconds(3)  # 7 steps, and the evaluations after steps 5 and 10
    74.0
    """

    def __init__(self, total: int, eval_every: int) -> None:
        self.total, self.eval_every = total, eval_every
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self._evaluations: deque[float] = deque(maxlen=RECENT_STEPS)

    def add_step(self, seconds: float) -> None:
        """Adds the time of a step without its evaluation."""
        self._steps.append(seconds)

    def add_evaluation(self, seconds: float) -> None:
        """Adds the time of an evaluation, that before training included."""
        self._evaluations.append(seconds)

    def evaluations_left(self, step: int) -> int:
        """Number of evaluations to come when `step` steps are finished and evaluated.

        >>> TimeLeft(total=12, eval_every=5).evaluations_left(5)  # after steps 10 and 12
        2
        """
        if step >= self.total:
            return 0
        if not self.eval_every:
            return 1
        return self.total // self.eval_every - step // self.eval_every + (self.total % self.eval_every != 0)

    def seconds(self, step: int) -> float | None:
        """Seconds left when `step` steps are finished; None before the first step of this process has ended."""
        if not self._steps:
            return None
        evaluation = statistics.median(self._evaluations) if self._evaluations else 0.0
        return (self.total - step) * statistics.median(self._steps) + self.evaluations_left(step) * evaluation


def phase_left(elapsed_s: float, share: float, expected_s: float | None) -> float | None:
    """Seconds left of a phase; None if nothing is known yet.

    elapsed_s   time since it began
    share       how much of it is done, 0 to 1
    expected_s  how long it took before (median); None for the first time

    >>> phase_left(4.0, 0.25, None), phase_left(4.0, 0.25, 10.0), phase_left(4.0, 0.0, None)
    (12.0, 6.0, None)
    """
    if share >= 1:
        return 0.0
    if expected_s is not None and elapsed_s < expected_s:
        return expected_s - elapsed_s
    return elapsed_s * (1 - share) / share if share > 0 else None


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours from one on.

    >>> clock(9.4), clock(192), clock(3725)
    ('0:09', '3:12', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
