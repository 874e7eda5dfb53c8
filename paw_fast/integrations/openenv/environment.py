"""Runs an environment of paw-fast as an environment of OpenEnv: text commands, text observations."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from openenv.core.env_server import Action, Environment, State
from openenv.core.env_server import Observation as OpenEnvObservation
from openenv.core.env_server.types import EnvironmentMetadata
from pydantic import Field

from paw_fast.envs.base import Env, StepResult
from paw_fast.envs.json_files import replace_surrogates
from paw_fast.errors import UserError
from paw_fast.integrations.text_env import OneAtATime, Result, TimeLimit, find_task, shown_text
from paw_fast.types import Observation, Task

MAX_COMMAND_CHARS = 8192
MAX_LISTED_TASKS = 1000
SPLITS = ("train", "unseen")


class TextAction(Action):
    """A command, such as `go to desk 1`, `click[Buy Now]` or `search[who wrote it]`."""

    command: str = Field(max_length=MAX_COMMAND_CHARS, description="The command, as the environment reads it")


class TextObservation(OpenEnvObservation):
    """What the environment shows after a reset or a command. `done` and `reward` are OpenEnv's own."""

    text: str = Field(description="The environment's text")
    task: str = Field("", description="The instruction of the episode")
    admissible_commands: list[str] = Field(
        default_factory=list, description="Commands that are accepted now; empty if they cannot be listed"
    )
    admissible: bool | None = Field(None, description="Whether the last command was accepted; null after a reset")
    won: bool = Field(False, description="Whether the task is solved")
    truncated: bool = Field(False, description="Whether the episode ended only because of its limit of commands")
    score: float = Field(0.0, description="The environment's own score of the last command")
    scores: dict[str, float] = Field(default_factory=dict, description="Further scores, at the end of an episode")


class TextState(State):
    """The episode of a session. `episode_id` and `step_count` are OpenEnv's own."""

    env: str = Field("", description="Name of the environment")
    split: str = Field("", description="Split of the task")
    task_id: str = Field("", description="Id of the task; empty before the first reset")
    index: int | None = Field(None, description="Number of the task in its split")


class EnvironmentHost:
    """What the sessions of a server share: the environment's data, and the turn to use it.

    env                the environment; each session has a slot of its own over its data
    split              the split of a reset that names none
    request_timeout_s  time limit of a reset or a step in seconds
    idle_timeout_s     for the error of a session that was closed, in seconds

    One request runs at a time (see `OneAtATime`). One that exceeds its time limit ends its session.
    """

    def __init__(self, env: Env, split: str = "train", request_timeout_s: float = 60.0, idle_timeout_s: float = 900.0):
        self.env, self.split, self.idle_timeout_s = env, split, idle_timeout_s
        self.turns = OneAtATime(request_timeout_s)

    def tasks(self, split: str) -> Sequence[Task]:
        return self.env.tasks(split)


class PawFastEnvironment(Environment[TextAction, TextObservation, TextState]):
    """One session: plays one episode at a time.

    `reset` takes a task by `index` (its number in the split) or `task_id`, else draws one by `seed`; `split` is that of
    the host by default. The methods ending in `_async`, which a server calls, wait for their turn and have a time
    limit; the others run at once. All raise `UserError` for what a client does wrong.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, host: EnvironmentHost) -> None:
        super().__init__()
        self._host, self._slot, self._closed_because = host, None, ""
        self._seen = Observation("")
        self._task_text = ""
        self._state = TextState(env=host.env.name)

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, split: str | None = None,
        index: int | None = None, task_id: str | None = None, **others: Any,
    ) -> TextObservation:  # fmt: skip
        """Starts an episode."""
        self._check_open()
        if others:
            raise UserError(f"reset takes seed, episode_id, split, index and task_id, got {', '.join(sorted(others))}")
        for name, value, kind in (("seed", seed, int), ("episode_id", episode_id, str), ("split", split, str)):
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise UserError(f"{name} is {str(value)[:200]!r}, expected {kind.__name__} or null")
        if index is not None and task_id is not None:
            raise UserError("index and task_id are given; a task is chosen by one of them")
        split = split or self._host.split
        tasks = self._host.tasks(split)
        which = task_id if index is None else index
        if which is None:
            if seed is not None and seed < 0:
                raise UserError(f"seed is {seed}, expected at least 0")
            which = int(np.random.default_rng(seed).integers(len(tasks)))
        number, task = find_task(tasks, which, split)
        if self._slot is None:
            self._slot = self._host.env.spawn()
        self._seen = self._slot.reset(task)
        self._task_text = self._seen.task
        self._state = TextState(
            env=self._host.env.name, split=split, task_id=task.task_id, index=number, step_count=0,
            episode_id=None if episode_id is None else episode_id[:255],
        )  # fmt: skip
        return self._observe(None)

    def step(self, action: TextAction, timeout_s: float | None = None, **others: Any) -> TextObservation:
        """Executes a command. `timeout_s` is not used: the server has its own time limit."""
        self._check_open()
        if self._slot is None or not self._state.task_id:
            raise UserError("step without an episode: send reset first")
        command = replace_surrogates(action.command)
        before, result = self._seen, self._slot.step(command)
        self._seen = result.observation
        self._state.step_count += 1
        return self._observe(result, result.was_admissible(command, before))

    def _observe(self, result: StepResult | None, admissible: bool | None = None) -> TextObservation:
        shown: dict[str, Any] = {
            "text": shown_text(self._seen), "task": self._task_text, "admissible": admissible,
            "admissible_commands": list(self._seen.admissible),
        }  # fmt: skip
        if result is not None:
            shown |= {
                "won": result.won, "truncated": result.truncated, "score": float(result.score),
                "scores": dict(result.scores), "done": result.done, "reward": float(result.reward),
            }  # fmt: skip
        return TextObservation(**shown)

    async def reset_async(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Any:
        return await self._limited(functools.partial(self.reset, seed, episode_id, **kwargs))

    async def step_async(self, action: TextAction, timeout_s: float | None = None, **kwargs: Any) -> Any:
        return await self._limited(functools.partial(self.step, action))

    async def _limited(self, function: Callable[[], Result]) -> Result:
        try:
            return await self._host.turns.call(function)
        except (TimeLimit, asyncio.CancelledError):  # the thread may still be at work in the slot
            self._closed_because = "a request did not come to its end"
            raise

    def _check_open(self) -> None:
        if self._closed_because:
            raise UserError(f"this session is closed ({self._closed_because}): connect again")

    @property
    def state(self) -> TextState:
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        name = self._host.env.name
        return EnvironmentMetadata(
            name=name, description=f"{name} as a text game, served by paw-fast", version=metadata.version("paw-fast")
        )

    def close(self) -> None:
        """Ends the session. Safe to call twice."""
        self._closed_because = self._closed_because or f"it had no request for {self._host.idle_timeout_s:g} s"
        if self._slot is not None:
            self._slot.close()
            self._slot = None

    # ------------------------------------------------------------------------- the tasks, by OpenEnv's task API

    def list_splits(self) -> list[dict[str, str]]:
        return [{"name": name, "type": "train" if name == "train" else "test"} for name in SPLITS]

    async def num_tasks(self, split: str) -> int:
        return len(await self._tasks(split))

    async def get_task(self, split: str, index: int) -> dict[str, Any]:
        number, task = find_task(await self._tasks(split), index, split)
        return describe(task, number, split)

    async def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """The first `MAX_LISTED_TASKS` tasks."""
        return await self.get_task_range(split)

    async def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[Any]:
        """The tasks of a slice, at most `MAX_LISTED_TASKS`."""
        numbers = range(len(await self._tasks(split)))[start:stop][:MAX_LISTED_TASKS]
        tasks = self._host.tasks(split)
        return [describe(tasks[number], number, split) for number in numbers]

    async def _tasks(self, split: str) -> Sequence[Task]:
        return await self._host.turns.call(lambda: self._host.tasks(split))


def describe(task: Task, number: int, split: str) -> dict[str, Any]:
    """What a client learns of a task: nothing of its files.

    >>> describe(Task("a", task_type="look"), 3, "train")
    {'id': 'a', 'index': 3, 'split': 'train', 'type': 'look'}
    """
    return {"id": task.task_id, "index": number, "split": split, "type": task.task_type}
