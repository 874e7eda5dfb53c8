"""When each process was busy with what: idle shares of a step, and a trace for chrome://tracing or Perfetto.

Spans are on the machine's monotonic clock (`time.perf_counter`), which all processes share. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from paw_fast.files import write_text
from paw_fast.metrics import StageTimer

Spans = Mapping[str, Sequence[tuple[str, float, float]]]
"""Of each process by name: (stage, start, end) in seconds."""

TRAINER_STAGES = ("score", "update", "sync")
PLAYER_STAGES = ("generate", "prompt", "environment")


def covered_s(spans: Iterable[tuple[str, float, float]]) -> float:
    """Seconds that lie in at least one of the spans.

    >>> covered_s([("a", 0.0, 2.0), ("b", 1.0, 3.0), ("c", 5.0, 6.0)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for _, start, end in sorted(spans, key=lambda span: span[1]):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def idle_shares(times: Mapping[str, float], spans: Spans) -> dict[str, float]:
    """Idle shares of trainer and generators from a step's `time/...` metrics and the generators' spans in it.

    Evaluations are left out of the step where the generator is this process; generators elsewhere play them too.

    >>> idle_shares({"time/step_s": 10.0, "time/update_s": 5.0, "time/generate_s": 3.0}, {})
    {'idle/trainer': 0.5, 'idle/generator': 0.7}
    """
    step = max(times["time/step_s"], 1e-9)
    stages = lambda names: sum(times.get(f"time/{name}_s", 0.0) for name in names)  # noqa: E731
    playing = [covered_s(one) for one in spans.values()] or [stages(PLAYER_STAGES)]
    share = lambda busy: min(1.0, max(0.0, 1.0 - busy / step))  # noqa: E731
    return {"idle/trainer": share(stages(TRAINER_STAGES)), "idle/generator": share(sum(playing) / len(playing))}


class Timeline:
    """Collects a run's spans and writes them, after each step, as one Chrome trace."""

    def __init__(self, path: Path):
        self.path = path
        self._events: list[dict] = []
        self._lanes: dict[str, int] = {}

    def add(self, timer: StageTimer, spans: Spans) -> None:
        """Adds what the trainer's timer and the other processes have recorded since the last call."""
        trainer = [(s.name, timer.origin + s.start_s, timer.origin + s.end_s) for s in timer.spans]
        timer.spans.clear()
        for process, rows in {"trainer": trainer, **spans}.items():
            lane = self._lane(process)
            self._events += [
                {"name": name, "ph": "X", "ts": start * 1e6, "dur": (end - start) * 1e6, "pid": lane, "tid": 0}
                for name, start, end in rows
            ]
        write_text(self.path, json.dumps({"traceEvents": self._events, "displayTimeUnit": "ms"}))

    def _lane(self, process: str) -> int:
        if process not in self._lanes:
            lane = self._lanes[process] = len(self._lanes)
            self._events.append({"name": "process_name", "ph": "M", "pid": lane, "tid": 0, "args": {"name": process}})
        return self._lanes[process]
