"""Measures how long each stage of a training step takes. Imports no torch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """One execution of a stage; times are in seconds since the timer was created. Produced by `StageTimer`."""

    name: str
    start_s: float
    end_s: float
    thread: int


class StageTimer:
    """Measures the seconds spent in each stage. Call the timer with the stage's name to get a context manager.

    The time of a nested stage is not counted in the enclosing stage, so the times add up to the time of the step.
    Several threads may share a timer: stages nest per thread, and the times of all threads are summed. `spans` keeps
    the last `max_spans` executions.

    >>> timer = StageTimer()
    >>> with timer("rollout"):
    ...     pass
    >>> sorted(timer.take())
    ['time/other_s', 'time/rollout_s', 'time/step_s']
    """

    def __init__(self, max_spans: int = 100_000) -> None:
        self.spans: deque[Span] = deque(maxlen=max_spans)
        self.origin = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        stack: list[float] = self._local.__dict__.setdefault("stack", [])
        stack.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            inside = stack.pop()
            if stack:
                stack[-1] += end - start
            with self._lock:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + (end - start) - inside
                thread = threading.get_ident()
                self.spans.append(Span(stage, start - self.origin, end - self.origin, thread))

    def take(self) -> dict[str, float]:
        """Returns the seconds of all stages that ended since the last call, as metrics, and resets them.

        `time/step_s` is the wall time since the last call. `time/other_s` is the part of it outside all stages, or 0 if
        the stages of parallel threads sum to more than the wall time.
        """
        with self._lock:
            now = time.perf_counter()
            seconds, self._seconds = self._seconds, {}
            step, self._last = now - self._last, now
        times = {f"time/{stage}_s": value for stage, value in seconds.items()}
        times["time/other_s"] = max(step - sum(seconds.values()), 0.0)
        times["time/step_s"] = step
        return times
