"""Finds out what is left to do when a run is resumed, and writes the files of a finished run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paw_fast.config import TrainConfig, load_toml
from paw_fast.config.resume import differences, may_change
from paw_fast.errors import UserError
from paw_fast.runs import run_dir as runs
from paw_fast.runs.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from paw_fast.runs.metrics import read_metrics
from paw_fast.runs.report import write_report
from paw_fast.runs.retention import recover_replaced


def resume_point(run_dir: Path) -> Checkpoint | None:
    """Returns the checkpoint to resume from, or None if the run stopped before its first one and must start over.

    Checkpoints that a killed process was replacing are restored. Raises `UserError` when the checkpoint is not one of a
    training run, and when the metrics show that there were checkpoints which are missing now: starting over would
    discard those metrics.
    """
    recover_replaced(run_dir)
    if find_checkpoint(run_dir) is not None:
        checkpoint = load_checkpoint(run_dir)
        check_training_state(checkpoint)
        return checkpoint
    # The row of step 0 is written before the first checkpoint, and is written again when the run starts over.
    last = max((int(row["step"]) for row in read_metrics(run_dir)), default=0)
    if last > 0:
        raise UserError(
            f"{run_dir} has metrics of {last} steps but no checkpoint in {run_dir / 'checkpoints'}: restore that "
            f"folder, or start a new run with --config {run_dir / 'config.toml'}"
        )
    return None


def check_training_state(checkpoint: Checkpoint) -> None:
    """Raises `UserError` if the checkpoint's `extra` lacks values that training goes on with, or has others."""
    extra = checkpoint.extra
    sampler = extra.get("sampler")
    elapsed = extra.get("elapsed_s")
    fits = {
        "sampler": isinstance(sampler, dict) and all(_is_count(sampler.get(n)) for n in ("drawn", "seed", "num_tasks")),
        "summary": isinstance(extra.get("summary"), dict),
        "elapsed_s": isinstance(elapsed, int | float) and math.isfinite(elapsed),
        "pending": extra.get("pending") is None or isinstance(extra["pending"], dict),
        "skipped_in_a_row": _is_count(extra.get("skipped_in_a_row", 0)),
    }
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        raise UserError(
            f"checkpoint {checkpoint.path} cannot be resumed: state.json lacks a valid {' and '.join(wrong)}; it was "
            "edited, or another program wrote it. Delete that folder to resume from an earlier one"
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def missing_rows(run_dir: Path, checkpoint: Checkpoint) -> str | None:
    """Returns a warning if metrics.jsonl lacks rows of steps up to the checkpoint's, else None."""
    last = checkpoint.step - 1 if checkpoint.extra.get("pending") else checkpoint.step
    missing = sorted(set(range(last + 1)) - {int(row["step"]) for row in read_metrics(run_dir)})
    if not missing:
        return None
    steps = f"step {missing[0]}" if len(missing) == 1 else f"{len(missing)} of the steps {missing[0]} to {missing[-1]}"
    return (
        f"warning: {run_dir / 'metrics.jsonl'} has no row for {steps}, though the checkpoint has {checkpoint.step} "
        "steps: the file was removed or edited, and curves will have a gap"
    )


def check_unedited(run_dir: Path, config: TrainConfig) -> None:
    """Compares the run's config.toml with the settings that the run began with.

    Raises `UserError` for an edited setting that a resume may not change, such as the seed. Runs of earlier versions
    have no record of their first settings and are not checked.
    """
    path = run_dir / runs.BEGUN
    if not path.is_file():
        return
    for name, first, now in differences(load_toml(path, of_run=True), config):
        if not may_change(name, config.env.CHANGEABLE_ON_RESUME):
            raise UserError(
                f"{run_dir / 'config.toml'} has {name} = {now}, but the run began with {first}: restore that value, or "
                f"start a new run with --config {run_dir / 'config.toml'}"
            )


def is_finished(checkpoint: Checkpoint | None, config: TrainConfig) -> bool:
    """Returns True if all steps are done and the last one has been evaluated."""
    return checkpoint is not None and checkpoint.step >= config.steps and not checkpoint.extra.get("pending")


def write_missing(run_dir: Path, checkpoint: Checkpoint) -> list[str]:
    """Writes the summary and report of a finished run that was killed after its last checkpoint.

    Also replaces a summary of an earlier step and a report that is older than the summary. Returns the names of the
    files written.
    """
    summary, report = run_dir / "summary.json", run_dir / "report.html"
    written = []
    if runs.read_json(summary).get("steps") != checkpoint.step:
        extra = checkpoint.extra
        write_summary(run_dir, extra["summary"], checkpoint.step, float(extra["elapsed_s"]), extra["sampler"]["seed"])
        written = [summary.name, report.name]
    elif not report.is_file() or report.stat().st_mtime_ns < summary.stat().st_mtime_ns:
        write_report([run_dir])
        written = [report.name]
    return written


def write_summary(
    run_dir: Path, summary: Mapping[str, Any], step: int, elapsed_s: float, seed: int
) -> dict[str, Any]:  # fmt: skip
    """Writes summary.json and report.html for the current state of the run, and returns the summary."""
    whole = {**summary, "wall_time_s": round(elapsed_s, 1), "steps": step, "seed": seed}
    runs.write_json(run_dir / "summary.json", whole)
    write_report([run_dir])
    return whole
