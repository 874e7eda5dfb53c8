"""Shows the runs of a comparison: a table of arms and seeds on a terminal, one line elsewhere. Imports no torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from paw_fast.compare.job import Job, State
from paw_fast.runs import run_dir as runs
from paw_fast.runs.time_left import clock

_TAIL_BYTES = 1 << 14


def render(jobs: Sequence[Job], now: float) -> RenderableType:
    """The table of a terminal: an arm a row, a seed a column, and a line about what is left."""
    arms, seeds = (list(dict.fromkeys(values)) for values in zip(*((j.run.arm, j.run.seed) for j in jobs), strict=True))
    found = {(job.run.arm, job.run.seed): job for job in jobs}
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("arm")
    for seed in seeds:
        table.add_column(f"seed {seed}", no_wrap=True)
    for arm in arms:
        table.add_row(Text(arm), *(Text(_cell(found[arm, seed], now)) for seed in seeds))
    return Group(table, Text(summary_line(jobs, now)))


def summary_line(jobs: Sequence[Job], now: float) -> str:
    """How many runs are done, what runs, and the time left if it can be told."""
    done, failed, running = (_in(jobs, state) for state in (State.DONE, State.FAILED, State.RUNNING))
    parts = [f"{len(done)} of {len(jobs)} runs done"]
    parts += [f"{len(failed)} failed"] if failed else []
    if running:
        parts.append("running: " + ", ".join(f"{j.run.arm} s{j.run.seed} {_progress(j)}" for j in running))
    left = seconds_left(jobs, now)
    return "; ".join(parts + ([f"about {clock(left)} left"] if left is not None else []))


def seconds_left(jobs: Sequence[Job], now: float) -> float | None:
    """Seconds until all runs are done: the median time of a run times those left, over the runs at a time."""
    running, waiting = _in(jobs, State.RUNNING), _in(jobs, State.WAITING)
    known = [job.seconds for job in jobs if job.seconds is not None and job.state is State.DONE]
    known = known or [(now - j.began_s) / share for j in running if (share := _share(j)) > 0.3]
    if not known or not running:
        return None
    one = statistics.median(known)
    rest = [max(0.0, one - (now - job.began_s)) for job in running]
    return max(max(rest), (sum(rest) + one * len(waiting)) / len(running))


def _in(jobs: Sequence[Job], state: State) -> list[Job]:
    return [job for job in jobs if job.state is state]


def _cell(job: Job, now: float) -> str:
    if job.state is State.DONE:
        return f"done {runs.read_json(job.run.folder / 'summary.json')['final_success']:.0%}"
    if job.state is State.RUNNING:
        return f"{_progress(job)}, {clock(now - job.began_s)}"
    return job.state.value


def _progress(job: Job) -> str:
    row = last_row(job.run.folder)
    if row is None:
        return "setting up"
    return f"step {int(row['step'])}/{job.run.config.steps}"


def _share(job: Job) -> float:
    row = last_row(job.run.folder)
    return 0.0 if row is None else int(row["step"]) / max(1, job.run.config.steps)


def last_row(run_dir: Path) -> dict[str, Any] | None:
    """The last whole row of metrics.jsonl, None if there is none."""
    with suppress(OSError), open(run_dir / "metrics.jsonl", "rb") as file:
        file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
        for line in reversed(file.read().split(b"\n")[:-1]):
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and "step" in row:
                    return row
    return None
