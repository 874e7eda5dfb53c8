"""Defines a run of a comparison while it waits, runs or has ended. Imports no torch."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from enum import Enum

from paw_fast.compare.plan import PlannedRun


class State(Enum):
    """What a run does."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Job:
    """A run and its process. Owned by `Scheduler`."""

    run: PlannedRun
    state: State = State.WAITING
    process: subprocess.Popen[bytes] | None = None
    began_s: float = 0.0
    seconds: float | None = None
    why: str = ""
