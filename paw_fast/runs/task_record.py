"""Records which tasks each training step played, so that runs can be compared step by step. Imports no torch.

    RUN/tasks.jsonl    one JSON object a step: {"step": 3, "tasks": ["trial_7", ...], "won": [2, ...], "episodes": 64}

`tasks` has the id of each group's task in order of the groups, `won` how many episodes of the group succeeded. The
seeds of the episodes are (seed, step, group, index), with the run's seed, which is in config.toml.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from paw_fast.runs.atomic_files import user_errors
from paw_fast.types import Trajectory

TASKS = "tasks.jsonl"


class StepTasks(NamedTuple):
    """What a training step played. Produced by `read_tasks`.

    tasks     the id of each group's task
    episodes  number of episodes
    won       number of successful episodes of each group

    >>> StepTasks(("trial_7", "trial_2"), 16, (2, 0)).share_without_success
    0.5
    """

    tasks: tuple[str, ...]
    episodes: int
    won: tuple[int, ...]

    @property
    def share_without_success(self) -> float:
        """Share of the groups in which no episode succeeded."""
        return self.won.count(0) / max(1, len(self.won))


def write_tasks(run_dir: Path, step: int, trajectories: Sequence[Trajectory]) -> None:
    """Appends the tasks of a step. Raises `UserError` if the file cannot be written."""
    groups = {t.group: t.task.task_id for t in trajectories}
    won = Counter(t.group for t in trajectories if t.won)
    order = sorted(groups)
    row = {
        "step": step, "tasks": [groups[group] for group in order], "won": [won[group] for group in order],
        "episodes": len(trajectories),
    }  # fmt: skip
    path = run_dir / TASKS
    with user_errors("write the tasks of the step", path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # a process was killed while it wrote the line
                file.write(b"\n")
        file.write((json.dumps(row) + "\n").encode())


def read_tasks(run_dir: Path) -> dict[int, StepTasks]:
    """Returns what each recorded step played; {} if there is no record.

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
            tasks, won = tuple(map(str, row["tasks"])), tuple(map(int, row["won"]))
            found[int(row["step"])] = StepTasks(tasks, int(row["episodes"]), won)
        except (ValueError, KeyError, TypeError):
            continue
    return found
