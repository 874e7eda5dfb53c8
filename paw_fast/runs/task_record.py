"""Records which tasks each training step played, so that runs can be compared step by step. Imports no torch.

    RUN/tasks.jsonl    one JSON object a step: {"step": 3, "tasks": ["trial_7", ...], "episodes": 64}

`tasks` has the id of each group's task in order of the groups. With the run's seed, which is in config.toml, they
decide the seeds of the episodes: (seed, step, group, index).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from paw_fast.runs.atomic_files import user_errors
from paw_fast.types import Trajectory

TASKS = "tasks.jsonl"


def write_tasks(run_dir: Path, step: int, trajectories: Sequence[Trajectory]) -> None:
    """Appends the tasks of a step. Raises `UserError` if the file cannot be written."""
    groups = {t.group: t.task.task_id for t in trajectories}
    row = {"step": step, "tasks": [groups[group] for group in sorted(groups)], "episodes": len(trajectories)}
    path = run_dir / TASKS
    with user_errors("write the tasks of the step", path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # a process was killed while it wrote the line
                file.write(b"\n")
        file.write((json.dumps(row) + "\n").encode())


def read_tasks(run_dir: Path) -> dict[int, tuple[tuple[str, ...], int]]:
    """Returns (task ids, number of episodes) of each recorded step; {} if there is no record.

    A step that was repeated after a resume counts as it was played last. Lines that were not written whole are left
    out. Raises `UserError` if the file cannot be read.
    """
    path, found = run_dir / TASKS, {}
    if not path.exists():
        return {}
    with user_errors("read the tasks of the steps", path):
        lines = path.read_bytes().splitlines()
    for line in lines:
        try:
            row = json.loads(line)
            found[int(row["step"])] = tuple(map(str, row["tasks"])), int(row["episodes"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
