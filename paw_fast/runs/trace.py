"""Records what each process does over time: idle shares of a step, and a trace for chrome://tracing or Perfetto.

Times are those of the monotonic clock of the machine (`time.perf_counter`), which all processes share. Imports no
torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from paw_fast.runs.atomic_files import user_errors, write_text
from paw_fast.runs.stage_timer import StageTimer

Spans = Mapping[str, Sequence[tuple[str, float, float]]]
"""Spans of each process, by its name: (stage, start, end), in seconds."""

TRAINER_STAGES = ("score", "update", "sync")
ROLLOUT_STAGES = ("generate", "prompt", "environment")
_CLOSE = "\n]\n"


def covered_s(spans: Iterable[tuple[str, float, float]]) -> float:
    """Returns the seconds covered by at least one of the spans.

    >>> covered_s([("a", 0.0, 2.0), ("b", 1.0, 3.0), ("c", 5.0, 6.0)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for _, start, end in sorted(spans, key=lambda span: span[1]):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def idle_shares(
    times: Mapping[str, float], spans: Spans, evaluated: Sequence[tuple[str, float, float]] = ()
) -> dict[str, float]:
    """Returns the idle shares of the trainer and the rollout workers in a step, each in [0, 1].

    Args:
        times: the `time/...` metrics of the step.
        spans: spans of the rollout workers in the step; empty if rollouts run in the process of the trainer.
        evaluated: spans of evaluations. They, and the rollouts in them, are excluded.

    >>> idle_shares({"time/step_s": 10.0, "time/update_s": 5.0, "time/generate_s": 3.0}, {})
    {'idle/trainer': 0.5, 'idle/generator': 0.7}
    """
    left_out = covered_s(evaluated)
    step = max(times["time/step_s"] - left_out, 1e-9)
    stages = lambda names: sum(times.get(f"time/{name}_s", 0.0) for name in names)  # noqa: E731
    # Rollouts of an evaluation in this process are timed as rollout stages, not as part of the stage `evaluate`.
    inside = max(0.0, left_out - times.get("time/evaluate_s", 0.0)) if evaluated else 0.0
    busy = [covered_s([*one, *evaluated]) - left_out for one in spans.values()] or [stages(ROLLOUT_STAGES) - inside]
    share = lambda seconds: min(1.0, max(0.0, 1.0 - seconds / step))  # noqa: E731
    return {"idle/trainer": share(stages(TRAINER_STAGES)), "idle/generator": share(sum(busy) / len(busy))}


def evaluation_spans(timer: StageTimer, step_s: float) -> list[tuple[str, float, float]]:
    """Returns the spans of evaluations in the step of `step_s` seconds that ends now."""
    start = time.perf_counter() - timer.origin - step_s
    ended = [s for s in timer.spans if s.name == "evaluate" and s.end_s > start]
    return [(s.name, timer.origin + s.start_s, timer.origin + s.end_s) for s in ended]


class TraceFile:
    """Writes the spans of a run as a Chrome trace, one step at a time. A resumed run overwrites the file.

    The file is a JSON array. Each step replaces the closing bracket by its events and a new bracket, so the file is
    valid after every step and the cost of a step does not grow. Viewers also accept the file if the process is killed
    during a write.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lanes: dict[str, int] = {}

    def add(self, timer: StageTimer, spans: Spans) -> None:
        """Appends the spans of the trainer's timer and of the other processes since the last call.

        Raises `UserError` when the file cannot be written.
        """
        trainer = [(s.name, timer.origin + s.start_s, timer.origin + s.end_s) for s in timer.spans]
        timer.spans.clear()
        events: list[dict] = []
        first = not self._lanes
        for process, rows in {"trainer": trainer, **spans}.items():
            if process not in self._lanes:
                self._lanes[process] = len(self._lanes)
                about = {"pid": self._lanes[process], "tid": 0, "args": {"name": process}}
                events.append({"name": "process_name", "ph": "M", **about})
            lane = self._lanes[process]
            events += [
                {"name": name, "ph": "X", "ts": start * 1e6, "dur": (end - start) * 1e6, "pid": lane, "tid": 0}
                for name, start, end in rows
            ]
        if first:
            write_text(self.path, "[\n" + ",\n".join(map(json.dumps, events)) + _CLOSE)
        elif events:
            with user_errors("write the trace", self.path), open(self.path, "r+b") as file:
                file.seek(-len(_CLOSE), os.SEEK_END)
                file.write((",\n" + ",\n".join(map(json.dumps, events)) + _CLOSE).encode())
