"""Finds out what is left to do when a run is resumed, and writes the files of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.runs import run_dir as runs
from paw_fast.runs.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from paw_fast.runs.metrics import read_metrics
from paw_fast.runs.report import write_report


def resume_point(run_dir: Path) -> Checkpoint | None:
    """Returns the checkpoint to resume from, or None if the run stopped before its first one and must start over.

    Raises `UserError` when the metrics show that there were checkpoints which are missing now: starting over would
    discard those metrics.
    """
    if find_checkpoint(run_dir) is not None:
        return load_checkpoint(run_dir)
    # The row of step 0 is written before the first checkpoint, and is written again when the run starts over.
    last = max((int(row["step"]) for row in read_metrics(run_dir)), default=0)
    if last > 0:
        raise UserError(
            f"{run_dir} has metrics of {last} steps but no checkpoint in {run_dir / 'checkpoints'}: restore that "
            f"folder, or start a new run with --config {run_dir / 'config.toml'}"
        )
    return None


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
