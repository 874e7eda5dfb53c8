"""Shows the progress of a training run: the bar of its steps, a line for each step, problems in words."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from paw_fast.runs import console, progress
from paw_fast.runs.time_left import TimeLeft, clock
from paw_fast.runs.trouble import TroubleWatch


@dataclass(frozen=True)
class RunShape:
    """What the progress of a run depends on. Produced by the trainer.

    steps, eval_every  of the config
    eval_split         name of the split of the evaluation tasks
    written            whether episodes are written to `episodes/`
    """

    steps: int
    eval_every: int
    eval_split: str
    written: bool = True


class StepProgress:
    """Progress of a training run, in the block of `running`. Owned by the trainer.

    Call `evaluated` after each evaluation with its seconds, and `step` after each step.
    """

    def __init__(self, shape: RunShape) -> None:
        self.shape = shape
        self.time_left = TimeLeft(shape.steps, shape.eval_every)
        self.troubles = TroubleWatch()
        self._evaluation_s = 0.0
        self._started_s = time.monotonic()
        self._phase: progress.Phase | None = None

    @contextmanager
    def running(self, done: int, success: float) -> Iterator[None]:
        """Shows the bar of the steps, `done` of which are finished, while the block runs."""
        with progress.phase("training", self.shape.steps, "steps") as phase:
            self._phase, self._started_s, self._evaluation_s = phase, time.monotonic(), 0.0
            phase.done, phase.timed, phase.detail = done, False, f"success {success:.0%}"
            yield

    def evaluated(self, seconds: float) -> None:
        """Counts an evaluation that took so long."""
        self._evaluation_s += seconds
        self.time_left.add_evaluation(seconds)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the line of a finished step, and the problems that it begins."""
        now = time.monotonic()
        self.time_left.add_step(max(0.0, now - self._started_s - self._evaluation_s))
        self._started_s, self._evaluation_s = now, 0.0
        left = self.time_left.seconds(step)
        if self._phase is not None:
            self._phase.done, self._phase.left_s = step, left
            self._phase.detail = f"success {metrics['success/rate']:.0%}"
        live = console.is_live()
        parts = step_parts(step, self.shape, metrics)
        if left is not None and not live:  # on a terminal the bar shows it
            parts.append(f"{clock(left)} left")
        console.say(wrap(parts, console.console.width if live else None))
        for trouble in self.troubles.begun(step, metrics, written=self.shape.written):
            console.say(f"  warning: {trouble}")


def step_parts(step: int, shape: RunShape, metrics: Mapping[str, float]) -> list[str]:
    """The parts of a step's line.

    >>> row = {"success/rate": 0.5, "reward/mean": 4.25, "episode/invalid_action_rate": 0.031, "time/step_s": 5.1}
    >>> ", ".join(step_parts(3, RunShape(60, 10, "unseen"), row))
    'step 3/60, success 50%, return 4.25, invalid 3%, 5.1 s'
    """
    parts = [f"step {step}/{shape.steps}", f"success {metrics['success/rate']:.0%}"]
    if (evaluated := metrics.get("success/eval_rate")) is not None:
        parts.append(f"on {shape.eval_split} tasks {evaluated:.0%}")
    parts.append(f"return {metrics['reward/mean']:.2f}")
    if (invalid := metrics.get("episode/invalid_action_rate")) is not None:
        parts.append(f"invalid {invalid:.0%}")
    if (varied := metrics.get("policy/group_spread_share")) is not None:
        parts.append(f"no variance {1 - varied:.0%}")
    if skipped := metrics.get("optim/skipped_steps"):
        parts.append(f"skipped {skipped:.0f}")
    if (error := metrics.get("wm/next_observation_error")) is not None:
        parts.append(f"wm error {error:.2f}")
    return [*parts, f"{metrics['time/step_s']:.1f} s"]


def wrap(parts: Sequence[str], width: int | None, gap: str = "  ") -> str:
    """Joins parts to lines of at most `width` columns (None: one line), broken between parts.

    >>> print(wrap(["step 3/60", "success 50%", "return 4.25"], 24))
    step 3/60  success 50%
        return 4.25
    """
    lines = [parts[0]]
    for part in parts[1:]:
        if width is not None and len(lines[-1]) + len(gap) + len(part) > width:
            lines.append(f"    {part}")
        else:
            lines[-1] += gap + part
    return "\n".join(lines)


@contextmanager
def scoring_phase(step: int, done: int, groups: int) -> Iterator[None]:
    """Context manager that shows the token statistics of a group, after `done` others of the step's `groups`."""
    name = f"token statistics of step {step + 1}"
    with progress.phase("token statistics", max(groups, done + 1), "groups", name=name) as phase:
        phase.done, phase.timed = done, False
        yield


def show_update(phase: progress.Phase, number: int, total: int, share: float) -> None:
    """Shows that `share` of the optimizer batch `number` of `total` has been learned from."""
    phase.total, phase.done = total, number - 1 + share
    phase.counts = f"minibatch {number}/{total}"
