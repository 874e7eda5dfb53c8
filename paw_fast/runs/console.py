"""What a person sees while work goes on: a bar where there is a terminal, a line a step where there is none.

Everything goes to stderr, so that stdout stays free for results (`--json`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from paw_fast.runs import stop_signals


class _Screen:
    """sys.stderr as it is at the time; a screen that has gone (a lost connection, a closed pipe) stops nothing."""

    def write(self, text: str) -> int:
        self._survive(lambda: sys.stderr.write(text))
        return len(text)

    def flush(self) -> None:
        self._survive(lambda: sys.stderr.flush())

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    @staticmethod
    def _survive(act: Callable[[], object]) -> None:
        try:
            act()
        except OSError:
            with suppress(OSError, ValueError):  # what is still buffered must have somewhere to go
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, sys.stderr.fileno())
                os.close(null)


console = Console(file=cast(IO[str], _Screen()), highlight=False)
_listener: Callable[[str], None] | None = None


def say(text: str) -> None:
    """One line to the user."""
    if _listener is not None:
        _listener(text)
    else:
        console.print(text, markup=False, soft_wrap=True)


def send_to(listener: Callable[[str], None] | None) -> None:
    """Hands what is said in this process to `listener` instead; None prints again."""
    global _listener
    _listener = listener


def _bar(*extra) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), *extra, console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar over `total` items (None: not known); call what it gives once for each (or with a number of them).

    That call raises `stopping.Interrupted` where a stop was asked for.
    """
    if not console.is_terminal:
        say(f"{label} ...")
    with _bar() as bar:
        task = bar.add_task(label, total=total)

        def advance(count: int = 1) -> None:
            bar.advance(task, count)
            stop_signals.check()

        yield advance


class StepProgress:
    """The bar of a training run: steps done, and the episodes of the step that is being played."""

    def __init__(self, bar: Progress, total: int, done: int, success: float, eval_split: str):
        self._bar, self._total, self._success, self._eval_split = bar, total, success, eval_split
        self._steps = bar.add_task("training", total=total, completed=done)
        self._episodes = bar.add_task("  episodes", total=1)

    def episode(self, count: int) -> Callable[[], None]:
        """Begins a step of `count` episodes; call what it gives for each."""
        self._bar.reset(self._episodes, total=count)
        return lambda: self._bar.advance(self._episodes)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a finished step."""
        evaluated = metrics.get("success/eval_rate")
        parts = [f"step {step}/{self._total}", f"success {metrics['success/rate']:.0%}"]
        if evaluated is not None:
            parts.append(f"on {self._eval_split} tasks {evaluated:.0%}")
        parts.append(f"return {metrics['reward/mean']:.2f}")
        if "wm/next_observation_error" in metrics:
            parts.append(f"next-observation error {metrics['wm/next_observation_error']:.2f}")
        seconds = metrics["time/step_s"]
        left = seconds * (self._total - step)
        parts.append(f"{seconds:.1f} s a step, {int(left // 60)}:{int(left % 60):02d} left")
        say("  ".join(parts))
        self._bar.update(self._steps, completed=step, description=f"training, success {metrics['success/rate']:.0%}")


@contextmanager
def step_progress(total: int, done: int, success: float, eval_split: str) -> Iterator[StepProgress]:
    """The progress of a run of `total` steps, of which `done` are done, evaluated on the tasks of `eval_split`."""
    with _bar() as bar:
        yield StepProgress(bar, total, done, success, eval_split)
