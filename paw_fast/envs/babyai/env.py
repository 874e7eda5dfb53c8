"""Runs BabyAI episodes in words, as an `Env`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paw_fast.envs.babyai.config import BabyaiConfig
from paw_fast.envs.babyai.levels import check_installed, layout_of, make_level, short_name
from paw_fast.envs.babyai.text import COMMANDS, describe, effective_commands
from paw_fast.envs.base import BaseEnv, StepResult
from paw_fast.envs.seed_splits import seeds_of
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

_NEXT_TRY = 1 << 128
MAX_TRIES = 1000
"""Layouts that are drawn for a training task until one is not held out."""


class Missions:
    """The tasks that environments share. The layouts of the split "unseen" are held out of the split "train"."""

    def __init__(self, config: BabyaiConfig) -> None:
        if not config.levels:
            raise UserError("--env.levels is empty, expected at least one level")
        self.config = config
        self._held_out: frozenset[str] | None = None
        self._level_envs: dict[str, Any] = {}

    def tasks(self, split: str) -> tuple[Task, ...]:
        """The tasks of "train" or "unseen" (also "eval"), in a fixed order. Raises `UserError` for other splits."""
        levels = self.config.levels
        name, seeds = seeds_of(self.config, split, "babyai")
        made = []
        for i, seed in enumerate(seeds):
            level = levels[i % len(levels)]
            kind = short_name(level)
            made.append(Task(f"{kind}/{name}-{i}", "babyai", name, kind, info={"level": level, "seed": seed}))
        return tuple(made)

    def held_out(self) -> frozenset[str]:
        """The layouts of the tasks of "unseen"."""
        if self._held_out is None:
            layouts = set()
            for task in self.tasks("unseen"):
                level_env = self._level_env(task.info["level"])
                level_env.reset(seed=task.info["seed"])
                layouts.add(layout_of(level_env))
            self._held_out = frozenset(layouts)
        return self._held_out

    def _level_env(self, level: str) -> Any:
        if level not in self._level_envs:
            self._level_envs[level] = make_level(level)
        return self._level_envs[level]


class BabyaiEnv(BaseEnv):
    """Runs one mission at a time. The score is 1 at the step that fulfils the mission, else 0.

    An episode ends when the mission is fulfilled or failed (some levels fail at the first wrong object), or is
    truncated after `max_steps` commands. A command that is none of `text.COMMANDS` changes nothing. The observation's
    `notes` let the expert repeat the episode: level, seed, and the commands so far.
    """

    name = "babyai"

    def __init__(self, config: BabyaiConfig, missions: Missions | None = None) -> None:
        if missions is None:
            check_installed(config.levels)
        self._config, self._missions = config, missions or Missions(config)
        self._level_envs: dict[str, Any] = {}
        self._level_env: Any = None
        self._notes: dict[str, Any] = {}
        self._commands: tuple[str, ...] = ()
        self._done = True

    @property
    def disjoint_splits(self) -> bool:
        """True: layouts of "unseen" are held out."""
        return True

    @property
    def level_env(self) -> Any:
        """The `minigrid.minigrid_env.MiniGridEnv` of the episode. Changing it changes the episode."""
        if self._level_env is None:
            raise RuntimeError("no level without an episode: call reset first")
        return self._level_env

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train" or "unseen" (also "eval"), in a fixed order. Raises `UserError` for other splits."""
        return self._missions.tasks(split)

    def reset(self, task: Task) -> Observation:
        """Starts an episode. A training task whose layout is held out gets the next layout that is not.

        Raises `UserError` for a task without level and seed, and if the level has too few layouts.
        """
        level, seed = task.info.get("level"), task.info.get("seed")
        if not isinstance(level, str) or not isinstance(seed, int):
            raise UserError(f"the task {task.task_id!r} has no level and seed: take one of env.tasks(...)")
        if level not in self._level_envs:
            self._level_envs[level] = make_level(level)
        level_env = self._level_env = self._level_envs[level]
        held_out = self._missions.held_out() if task.split == "train" else frozenset()
        for attempt in range(MAX_TRIES):
            drawn = seed + attempt * _NEXT_TRY
            level_env.reset(seed=drawn)
            if layout_of(level_env) not in held_out:
                break
        else:
            raise UserError(
                f"--env.levels {level}: {MAX_TRIES} layouts in a row are held out; --env.num-unseen is "
                f"{self._config.num_unseen}, expected less for so small a level"
            )
        self._notes, self._commands, self._done = {"level": level, "seed": drawn}, (), False
        # Not what reset returns: the levels named Carrying put an object in the hand after that.
        return self._observe(level_env.gen_obs(), level_env.mission)

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `RuntimeError` before the first reset or after `done`."""
        if self._done:
            raise RuntimeError("step without an episode: call reset first")
        level_env = self._level_env
        accepted = command in effective_commands(level_env)
        ended, reward = False, 0.0
        if command in COMMANDS:
            seen, reward, ended, _, _ = level_env.step(COMMANDS.index(command))
        else:
            seen = level_env.gen_obs()
        self._commands = (*self._commands, command)
        won = bool(ended and reward > 0)
        over = len(self._commands) >= self._config.max_steps
        self._done = ended or over
        return StepResult(self._observe(seen), self._done, won, truncated=over and not ended, admissible=accepted)

    def _observe(self, seen: dict[str, Any], task: str = "") -> Observation:
        notes = {**self._notes, "commands": self._commands}
        return Observation(describe(seen["image"]), effective_commands(self._level_env), task, notes=notes)

    def spawn(self) -> BabyaiEnv:
        """Creates another episode slot over the same tasks."""
        return BabyaiEnv(self._config, self._missions)

    def close(self) -> None:
        """Ends the episode. Safe to call twice."""
        self._done = True
