"""Defines `PawFastEnv`, an environment of paw-fast as a gymnasium environment of texts."""

from __future__ import annotations

import string
from typing import Any, ClassVar

import gymnasium
from gymnasium import spaces  # pyright: ignore[reportAttributeAccessIssue]  # where it is not installed

from paw_fast.envs.base import StepResult
from paw_fast.errors import UserError
from paw_fast.integrations.text_env import find_task, make_slot, shown_text
from paw_fast.types import Observation

MAX_ACTION_CHARS, MAX_OBSERVATION_CHARS = 4096, 1 << 24


class AnyText(spaces.Text):
    """All texts up to a length, of any characters. Samples are of printable ASCII."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, min_length=0, charset=string.digits + string.ascii_letters + " .,[]'")

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


class PawFastEnv(gymnasium.Env[str, str]):  # pyright: ignore[reportAttributeAccessIssue]
    """An environment of paw-fast as a gymnasium environment.

    name      `alfworld`, `webshop`, `search`, `babyai`, `module:Class` or another name that `--env` takes
    split     `train`, `unseen`, or another split of the environment
    settings  those of `paw_fast.envs.make`

    `reset` draws a task by its seed; `options={"task": 3}` takes one by its number in the split or by its id. Of a
    step, `info` has

    admissible_commands  list of the commands that are accepted now; empty if they cannot be listed
    task, task_id        the instruction, and the id of the task
    is_success           whether the task is solved; at the end of an episode, whether it is a success
    score, scores        the environment's own score of the step; further scores by name, at the end
    admissible           whether the environment accepted the command

    Raises `UserError` for names, settings and tasks that do not exist.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(self, name: str, split: str = "train", render_mode: str | None = None, **settings: Any) -> None:
        if render_mode not in (None, "ansi"):
            raise UserError(f"render_mode is {render_mode!r}, expected 'ansi' or None")
        self.render_mode, self.split = render_mode, split
        self.observation_space = AnyText(MAX_OBSERVATION_CHARS)
        self.action_space = AnyText(MAX_ACTION_CHARS)
        self._env = make_slot(name, settings)
        self._tasks = self._env.tasks(split)
        if not self._tasks:
            raise UserError(f"the split {split} of {name} has no tasks")
        self._seen = Observation("")
        self._task_text = self._task_id = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        which = (options or {}).get("task")
        if which is None:
            which = int(self.np_random.integers(len(self._tasks)))
        _, task = find_task(self._tasks, which, self.split)
        self._seen = self._env.reset(task)
        self._task_text, self._task_id = self._seen.task, task.task_id
        return shown_text(self._seen), self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        result = self._env.step(action)
        info = {"admissible": result.was_admissible(action, self._seen)}
        self._seen = result.observation
        info |= self._info(result)
        text = shown_text(self._seen)
        return text, float(result.reward), result.done and not result.truncated, result.truncated, info

    def _info(self, result: StepResult | None = None) -> dict[str, Any]:
        return {
            "admissible_commands": list(self._seen.admissible), "task": self._task_text, "task_id": self._task_id,
            "is_success": bool(result and result.won), "score": float(result.score) if result else 0.0,
            "scores": dict(result.scores) if result else {},
        }  # fmt: skip

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The text of the last observation, with `render_mode="ansi"`."""
        return shown_text(self._seen) if self.render_mode == "ansi" else None

    def close(self) -> None:
        self._env.close()
