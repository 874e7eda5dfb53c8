"""Finds an environment and its tasks for the protocols of other libraries, which name them by texts and numbers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from paw_fast import envs
from paw_fast.envs.base import Env
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

Result = TypeVar("Result")
_shared: dict[tuple[str, tuple[tuple[str, Any], ...]], Env] = {}
_lock = threading.Lock()


def make_slot(name: str, settings: dict[str, Any]) -> Env:
    """Returns an episode slot of `envs.make(name, **settings)`. Slots of equal settings share games and catalogues.

    Raises `UserError` for names and settings that do not exist, and for packages that are missing.
    """
    key = (name, tuple(sorted(settings.items())))
    try:
        hash(key)
    except TypeError:  # a list among the settings
        check(name, settings)
        return envs.make(name, **settings)
    with _lock:
        if key not in _shared:
            check(name, settings)
            _shared[key] = envs.make(name, **settings)
        return _shared[key].spawn()


def check(name: str, settings: dict[str, Any]) -> None:
    """Raises `UserError` for settings that do not exist, and if packages or data that they need are missing."""
    spec, config = envs.find(name), envs.configure(name, settings)[0]
    if spec.check_installed is not None:
        spec.check_installed(config)


def find_task(tasks: Sequence[Task], which: int | str, split: str) -> tuple[int, Task]:
    """Returns a task and its number, by its number in the split or by its id. Raises `UserError`.

    >>> find_task([Task("a"), Task("b")], "b", "train")[0]
    1
    >>> find_task([Task("a")], 3, "train")
    Traceback (most recent call last):
    paw_fast.errors.UserError: task 3: the split train has tasks 0 to 0
    """
    if isinstance(which, str):
        for number, task in enumerate(tasks):
            if task.task_id == which:
                return number, task
        raise UserError(f"task {which[:200]!r}: the split {split} has no task of this id")
    if isinstance(which, bool) or not isinstance(which, int):
        raise UserError(f"the task is {which!r}, expected its number in the split or its id")
    if not 0 <= which < len(tasks):
        raise UserError(f"task {which}: the split {split} has tasks 0 to {len(tasks) - 1}")
    return which, tasks[which]


def shown_text(observation: Observation) -> str:
    """The text of an observation in the form in which policies read it."""
    return observation.text if observation.shown is None else observation.shown


class TimeLimit(UserError):
    """A call of an environment took too long; its thread may still be at work."""


class OneAtATime:
    """Calls environments from an event loop: each call in a thread, one after the other, with a time limit.

    Environments are not thread-safe, and slots share data. A call that exceeds `limit_s` gives up its turn; its slot
    must not be used again.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self._turn = limit_s, asyncio.Lock()

    async def call(self, function: Callable[[], Result]) -> Result:
        """Returns what the function returns. Raises `TimeLimit`, and what the function raises."""
        import anyio

        async with self._turn:
            try:
                with anyio.fail_after(self.limit_s):
                    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)
            except TimeoutError:
                raise TimeLimit(f"the request took more than {self.limit_s:g} s") from None
