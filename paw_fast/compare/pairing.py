"""Verifies that the arms of a comparison are comparable: same model at the start, same tasks in every step.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from paw_fast.compare.plan import PlannedRun
from paw_fast.errors import UserError
from paw_fast.runs.manifest import digest
from paw_fast.runs.task_record import TASKS, read_tasks


def verify(runs: Sequence[PlannedRun]) -> None:
    """Compares the finished runs of each seed with the first of them.

    Raises `UserError`, naming both runs and the step, if they began with different models (the warm start of the `tiny`
    preset) or played different tasks, another number of episodes, or tasks that were not recorded.
    """
    first: dict[int, PlannedRun] = {}
    for run in (one for one in runs if one.finished):
        other = first.setdefault(run.seed, run)
        _check_complete(run)
        if other is not run:
            _check_start(other, run)
            _check_tasks(other, run)


def _check_complete(run: PlannedRun) -> None:
    steps = set(range(1, run.config.steps + 1))
    if missing := sorted(steps - set(read_tasks(run.folder))):
        raise UserError(
            f"{run.folder / TASKS} has no record of step {missing[0]}: it cannot be checked that the arms played the "
            "same tasks; restore the file, or remove the run and give the command again"
        )


def _check_start(first: PlannedRun, second: PlannedRun) -> None:
    found = []
    for run in (first, second):
        weights = run.folder / "warm_start" / "model.safetensors"
        found.append(digest(weights) if weights.is_file() else None)
    if found[0] != found[1]:
        raise UserError(
            f"{first.folder} and {second.folder} began with different warm starts: their weights differ, so the arms "
            "cannot be compared. It happens when the machine, its packages or the number of threads change between "
            "runs; remove one of the runs and give the command again"
        )


def _check_tasks(first: PlannedRun, second: PlannedRun) -> None:
    ours, theirs = read_tasks(first.folder), read_tasks(second.folder)
    for step in range(1, first.config.steps + 1):
        if ours[step] == theirs[step]:
            continue
        (tasks_a, episodes_a), (tasks_b, episodes_b) = ours[step], theirs[step]
        what = f"{episodes_a} and {episodes_b} episodes"
        for number, (a, b) in enumerate(zip(tasks_a, tasks_b, strict=False)):
            if a != b:
                what = f"the tasks {a} and {b} in group {number + 1}"
                break
        raise UserError(
            f"{first.folder} and {second.folder} played different tasks in step {step}: {what}; the arms are not paired"
        )
