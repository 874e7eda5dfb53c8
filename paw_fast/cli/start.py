"""Starts and resumes training runs, for the command line and for the functions of `paw_fast.api`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from paw_fast.cli.failures import clean_up, memory_errors
from paw_fast.config import TrainConfig, changes_on_resume, validate
from paw_fast.planning.check import check_memory
from paw_fast.runs import console, rollback
from paw_fast.runs import run_dir as runs
from paw_fast.runs.resume import is_finished, resume_point, write_missing
from paw_fast.trainer import OnStep, train

MakeOnStep = Callable[[Path], OnStep | None]
"""Makes the callback of a run from its directory; see `trainer.OnStep`."""


def start_run(config: TrainConfig, make_on_step: MakeOnStep = lambda run_dir: None) -> tuple[int, Path]:
    """Trains in a new run directory; returns the exit status and the directory.

    Raises `UserError` if the run cannot begin; the folder is then as it was before.
    """
    check_memory(config)
    before = rollback.look(config.run_dir or Path("runs") / "new")
    run_dir = runs.create_run(config)
    console.say(f"run directory {run_dir}")
    try:
        with clean_up(run_dir, before), memory_errors(config):
            return train(config, run_dir, on_step=make_on_step(run_dir)), run_dir
    finally:
        runs.unlock(run_dir)


def resume_run(
    run_dir: Path, begun: TrainConfig, config: TrainConfig, make_on_step: MakeOnStep = lambda run_dir: None
) -> tuple[int, list[str] | None]:  # fmt: skip
    """Continues a run from its newest checkpoint, with settings that were `begun` before.

    Returns the exit status, and None; for a run that has done its steps, the names of the files that had not been
    written and are now. Raises `UserError` for changes that a resume does not allow.
    """
    changes = changes_on_resume(run_dir, begun, config)
    validate(config)
    check_memory(config)
    runs.lock(run_dir)
    try:
        checkpoint = resume_point(run_dir)
        if checkpoint is not None and is_finished(checkpoint, config):
            return 0, write_missing(run_dir, checkpoint)
        console.say(f"going on with {run_dir}" + (f", changed: {', '.join(changes)}" if changes else ""))
        with memory_errors(config):
            return train(config, run_dir, resume=True, on_step=make_on_step(run_dir)), None
    finally:
        runs.unlock(run_dir)
