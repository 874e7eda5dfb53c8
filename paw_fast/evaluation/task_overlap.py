"""Finds evaluation tasks that are also training tasks, by their contents rather than their names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from paw_fast.envs.base import Env
from paw_fast.types import Task


def tasks_in_train(env: Env, tasks: Sequence[Task], split: str) -> int:
    """Counts the `tasks` of a split that are also in the training split of `env`.

    If `disjoint_splits` of the environment is True, the training tasks are not read. Raises `UserError` if they cannot
    be read.
    """
    if split != "train" and env.disjoint_splits:
        return 0
    return count_shared(env.tasks("train"), tasks)


def count_shared(train: Sequence[Task], tasks: Sequence[Task]) -> int:
    """Number of `tasks` that are in `train`: with the same `key`, else the same bytes in their file, else the same id.

    A sequence that is too long to be read (WebShop's) has a method `contains(task)`, which is used instead.

    >>> count_shared([Task("a", key="who wrote emma")], [Task("1", key="who wrote emma"), Task("a", key="when")])
    1
    """
    contains = getattr(train, "contains", None)
    if contains is not None:
        return sum(bool(contains(task)) for task in tasks)
    names = {_name(task) for task in train if task.key or task.path is None}
    files: dict[int, list[Path]] = defaultdict(list)  # by size: only files of the same size are read
    for task in train:
        if not task.key and task.path is not None and (size := _size(task.path)) is not None:
            files[size].append(task.path)
    digests: dict[Path, bytes] = {}

    def digest(path: Path) -> bytes:
        if path not in digests:
            digests[path] = hashlib.sha256(path.read_bytes()).digest()
        return digests[path]

    def shared(task: Task) -> bool:
        if task.key or task.path is None:
            return _name(task) in names
        size, path = _size(task.path), task.path
        same_size = files.get(size, []) if size is not None else []
        return path in same_size or any(digest(one) == digest(path) for one in same_size)

    return sum(map(shared, tasks))


def _name(task: Task) -> tuple[str, str]:
    return ("key", task.key) if task.key else ("id", task.task_id)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # a file that cannot be read is reported when the task is played
        return None
