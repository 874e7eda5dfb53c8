"""Prints messages and progress: a progress bar on a terminal, one line per step elsewhere.

All output goes to stderr; stdout is reserved for results (`--json`).
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


class _Stderr:
    """File object that writes to the current `sys.stderr` and ignores errors of a closed terminal or pipe."""

    def write(self, text: str) -> int:
        self._ignore_errors(lambda: sys.stderr.write(text))
        return len(text)

    def flush(self) -> None:
        self._ignore_errors(lambda: sys.stderr.flush())

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    @staticmethod
    def _ignore_errors(write: Callable[[], object]) -> None:
        try:
            write()
        except OSError:
            with suppress(OSError, ValueError):  # buffered output is flushed at exit: redirect it to /dev/null
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, sys.stderr.fileno())
                os.close(null)


console = Console(file=cast(IO[str], _Stderr()), highlight=False)
_listener: Callable[[str], None] | None = None


def say(text: str) -> None:
    """Prints one line to stderr, or passes it to the listener set by `redirect`."""
    if _listener is not None:
        _listener(text)
    else:
        console.print(text, markup=False, soft_wrap=True)


def redirect(listener: Callable[[str], None] | None) -> None:
    """Passes the messages of this process to `listener` instead of printing them. None restores printing."""
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
    """Context manager that shows a progress bar over `total` items (None: unknown number).

    Yields a function `advance(count=1)` to call for finished items. It raises `stop_signals.Interrupted` when a stop
    was requested.
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
    """Progress of a training run: finished steps, and finished episodes of the current step."""

    def __init__(self, bar: Progress, total: int, done: int, success: float, eval_split: str):
        self._bar, self._total, self._success, self._eval_split = bar, total, success, eval_split
        self._steps = bar.add_task("training", total=total, completed=done)
        self._episodes = bar.add_task("  episodes", total=1)

    def episode(self, count: int) -> Callable[[], None]:
        """Starts a step of `count` episodes. Returns a function to call for each finished episode."""
        self._bar.reset(self._episodes, total=count)
        return lambda: self._bar.advance(self._episodes)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the metrics of a finished step and advances the bar."""
        evaluated = metrics.get("success/eval_rate")
        parts = [f"step {step}/{self._total}", f"success {metrics['success/rate']:.0%}"]
        if evaluated is not None:
            parts.append(f"on {self._eval_split} tasks {evaluated:.0%}")
        parts.append(f"return {metrics['reward/mean']:.2f}")
        if "wm/next_observation_error" in metrics:
            parts.append(f"next-observation error {metrics['wm/next_observation_error']:.2f}")
        seconds = metrics["time/step_s"]
        left = seconds * (self._total - step)
        parts.append(f"{seconds:.1f} s per step, {int(left // 60)}:{int(left % 60):02d} left")
        say("  ".join(parts))
        self._bar.update(self._steps, completed=step, description=f"training, success {metrics['success/rate']:.0%}")


@contextmanager
def step_progress(total: int, done: int, success: float, eval_split: str) -> Iterator[StepProgress]:
    """Context manager for the progress of a run of `total` steps, `done` of which are finished.

    `success` is the latest success rate; `eval_split` names the split of the evaluation tasks.
    """
    with _bar() as bar:
        yield StepProgress(bar, total, done, success, eval_split)
