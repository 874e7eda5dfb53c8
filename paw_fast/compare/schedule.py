"""Runs the training runs of a comparison as processes, several at a time, and shows what runs and what is left.

Imports no torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.live import Live

from paw_fast.compare.arms import option_text
from paw_fast.compare.job import Job, State
from paw_fast.compare.pairing import verify
from paw_fast.compare.plan import Plan, PlannedRun
from paw_fast.compare.run_table import render, summary_line
from paw_fast.config import load_toml, to_toml
from paw_fast.config.resume import differences
from paw_fast.errors import UserError
from paw_fast.runs import console, stop_signals
from paw_fast.runs import run_dir as runs
from paw_fast.runs.atomic_files import user_errors, write_text

POLL_S = 0.2
SILENCE_S = 14.0
"""Without a terminal a line says how far the comparison is when nothing was printed for so long."""
_EARLY_FAILURES = 3


@dataclass
class Scheduler:
    """Runs what is left of a plan, `at_once` runs at a time.

    now: gives the time in seconds. command: the program that a run's arguments are appended to.
    """

    plan: Plan
    at_once: int
    now: Callable[[], float] = time.monotonic
    command: Sequence[str] = (sys.executable, "-m", "paw_fast")
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.jobs = [Job(run, State.DONE if run.finished else State.WAITING) for run in self.plan.runs]

    def count(self, state: State) -> int:
        return sum(job.state is state for job in self.jobs)

    def run(self) -> list[Job]:
        """Runs everything that is left, and returns the runs that failed.

        A run that fails does not stop the others, unless the first ones all fail. Raises `UserError` when finished runs
        are not comparable, and `stop_signals.Interrupted` when a stop was requested; the runs have then been saved.
        """
        verify([job.run for job in self.jobs])
        self._refuse_running()
        printed, said = self.now(), console.lines_said
        with ExitStack() as stack:
            stack.callback(self._end)
            if console.is_live():
                draw = lambda: render(self.jobs, self.now())  # noqa: E731
                stack.enter_context(Live(get_renderable=draw, console=console.console, refresh_per_second=2))
            while self.count(State.WAITING) or self.count(State.RUNNING):
                stop_signals.check()
                self._start_more()
                time.sleep(POLL_S)
                self._reap()
                if console.lines_said != said:
                    printed, said = self.now(), console.lines_said
                elif not console.is_live() and self.now() - printed >= SILENCE_S:
                    console.say(summary_line(self.jobs, self.now()))
        return [job for job in self.jobs if job.state is State.FAILED]

    # ------------------------------------------------------------------------------------------------- processes

    def _start_more(self) -> None:
        while self.count(State.RUNNING) < self.at_once and (job := self._next()) is not None:
            self._start(job)

    def _next(self) -> Job | None:
        """The next run: of a seed whose warm start no other run is building, if there is one."""
        waiting = [job for job in self.jobs if job.state is State.WAITING]
        building = {
            job.run.seed
            for job in self.jobs
            if job.state is State.RUNNING and not (job.run.folder / "metrics.jsonl").exists()
        }
        return next((job for job in waiting if job.run.seed not in building), waiting[0] if waiting else None)

    def _start(self, job: Job) -> None:
        run = job.run
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.plan.threads), "COLUMNS": "120"}
        with user_errors("write the log of the run", run.log):
            log = open(run.log, "ab")  # noqa: SIM115 - closed below, when the process has it
        with log:
            job.process = subprocess.Popen(
                [*self.command, *train_arguments(run)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, start_new_session=True,  # Ctrl-C comes from here, once
            )  # fmt: skip
        job.state, job.began_s = State.RUNNING, self.now()
        self._say(job, "started")

    def _reap(self) -> None:
        for job in self.jobs:
            if job.process is None or (status := job.process.poll()) is None:
                continue
            job.process, job.seconds = None, self.now() - job.began_s
            if status == 0 and job.run.finished:
                job.state = State.DONE
                self._say(job, f"done, {_success(job.run)}")
                verify([one.run for one in self.jobs if one.run.seed == job.run.seed and one.state is State.DONE])
                continue
            job.state, job.why = State.FAILED, _why(status, job.run.log)
            self._say(job, f"failed: {job.why} (see {job.run.log})")
            failed = self.count(State.FAILED)
            if failed >= _EARLY_FAILURES and not self.count(State.DONE):
                raise UserError(f"the first {failed} runs failed, the last one with: {job.why}")

    def _say(self, job: Job, what: str) -> None:
        """A line about a run; on a terminal, where the table shows it, only about failures."""
        if not console.is_live() or job.state is State.FAILED:
            ended = self.count(State.DONE) + self.count(State.FAILED)
            console.say(f"{job.run.arm}, seed {job.run.seed}: {what} ({ended} of {len(self.jobs)} runs ended)")

    def _end(self) -> None:
        """Stops the processes that are left: they save their runs. A second Ctrl-C kills them."""
        left = [job for job in self.jobs if job.process is not None]
        try:
            for job in left:
                assert job.process is not None
                job.process.send_signal(signal.SIGTERM)
            for job in left:
                assert job.process is not None
                job.process.wait()
                job.state = State.WAITING
        except BaseException:
            for job in left:
                if job.process is not None and job.process.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(job.process.pid, signal.SIGKILL)
            raise

    def _refuse_running(self) -> None:
        """Raises `UserError` if another process trains a run, such as one that a killed comparison left."""
        for job in self.jobs:
            if job.state is State.WAITING and (job.run.folder / runs.LOCK).exists():
                runs.lock(job.run.folder)
                runs.unlock(job.run.folder)


def train_arguments(run: PlannedRun) -> list[str]:
    """The arguments of `paw-fast` that begin a run, or continue it. Writes the settings of one that begins."""
    path = run.log.with_suffix(".toml")
    write_text(path, to_toml(run.config))
    # Only a command line may give some settings, such as the permission to run code of others.
    loose = [text for name, _, now in differences(load_toml(path), run.config) for text in option_text(name, now)]
    if (run.folder / "config.toml").is_file():
        return ["train", "--resume", str(run.folder), *loose]
    return ["train", "--config", str(path), *loose]


def _success(run: PlannedRun) -> str:
    summary = runs.read_json(run.folder / "summary.json")
    return f"success {summary['warm_start_success']:.0%} before, {summary['final_success']:.0%} after"


def _why(status: int, log: Path) -> str:
    """Why a run ended: its signal, or the last line it printed."""
    if status < 0:
        known = -status in set(signal.Signals)
        return f"killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
    if status in (stop_signals.EXIT_INTERRUPTED, stop_signals.EXIT_RESUME):
        return "stopped by a signal and saved"
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1].removeprefix("paw-fast: ").removeprefix("error: ")[:400]
    return f"exit status {status}"
