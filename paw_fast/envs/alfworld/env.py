"""Runs ALFWorld episodes on the native engine, as an `Env`."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.config import AlfworldConfig
from paw_fast.envs.alfworld.games import dataset_root, generated_root, list_tasks, load_world, make_split, split_name
from paw_fast.envs.alfworld.pddl import UnsupportedGame
from paw_fast.envs.alfworld.state import State
from paw_fast.envs.alfworld.world import World
from paw_fast.envs.base import BaseEnv, Env, StepResult
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

_LOG = logging.getLogger("paw_fast.envs")
MAX_CACHED_WORLDS = 512  # about 0.1 MB each


class GameSet:
    """The games that environments share: official games in a folder, or generated games in the cache.

    data: the folder of the official games; None: the folder in ALFWORLD_DATA if it is set, else games are generated.
    size, seed, num_train, num_unseen, cache_dir: for generated games only.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        size: str = "small",
        seed: int = 0,
        num_train: int = AlfworldConfig.num_train,
        num_unseen: int = AlfworldConfig.num_unseen,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        data = data or os.environ.get("ALFWORLD_DATA") or None
        counts = {"train": num_train, "valid_seen": num_unseen, "valid_unseen": num_unseen}
        self._recipe = None if data is not None else (size, seed, counts)
        self.root = dataset_root(data) if data is not None else generated_root(size, seed, counts, cache_dir)
        self.handed_over: set[Path | None] = set()  # files that the reference plays: said once for each
        self._tasks: dict[str, tuple[Task, ...]] = {}
        self._worlds: OrderedDict[tuple[Path, int], World] = OrderedDict()

    def tasks(self, split: str) -> tuple[Task, ...]:
        """Returns the tasks of a split, cycling through the task types. Generates the games of the split if needed."""
        name = split_name(split)
        if name not in self._tasks:
            if self._recipe is not None:
                make_split(self.root, *self._recipe, name)
            self._tasks[name] = tuple(list_tasks(self.root, name))
        return self._tasks[name]

    @property
    def is_generated(self) -> bool:
        """Whether the games are generated."""
        return self._recipe is not None

    def world(self, task: Task) -> World:
        """Loads the world of a task. Worlds are cached until their file changes."""
        if task.path is None:
            raise UserError(f"the task {task.task_id!r} has no game file: make it with games.read_task(path)")
        try:
            key = (task.path, os.stat(task.path).st_mtime_ns)
        except OSError as error:
            raise UserError(f"cannot read {task.path}: {error.strerror}") from None
        world = self._worlds.get(key)
        if world is None:
            world = load_world(task.path)
            self._worlds[key] = world
            if len(self._worlds) > MAX_CACHED_WORLDS:
                self._worlds.popitem(last=False)
        else:
            self._worlds.move_to_end(key)
        return world


class AlfworldEnv(BaseEnv):
    """Runs one ALFWorld episode at a time on the native engine.

    The score is 1 at the step that wins, else 0; an episode ends when the game is won, or is truncated after
    `max_steps` commands. A game whose text grammar is not supported is refused, or run by the reference engine if
    `reference` creates one.
    """

    name = "alfworld"

    def __init__(self, games: GameSet, max_steps: int = 50, reference: Callable[[], Env] | None = None) -> None:
        if max_steps < 1:
            raise UserError(f"max_steps is {max_steps}, expected at least 1")
        self._games, self._max_steps, self._make_reference = games, max_steps, reference
        self._reference: Env | None = None
        self._handed_over = False
        self._task: Task | None = None
        self._state: State | None = None
        self._num_steps, self._done = 0, True

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "valid_seen" or "valid_unseen" (also "unseen"), in a fixed order."""
        return self._games.tasks(split)

    @property
    def disjoint_splits(self) -> bool:
        """Whether the games are generated, so that no two splits share one."""
        return self._games.is_generated

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `UserError` naming file and place when the task cannot be loaded."""
        self._handed_over, self._done, self._state = False, True, None
        try:
            world = self._games.world(task)
        except UnsupportedGame as why:
            return self._hand_over(task, str(why))
        self._task, self._state = task, world.initial.clone()
        self._num_steps, self._done = 0, False
        return self._observe(engine.introduction(self._state), world.task)

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `RuntimeError` before the first reset or after `done`."""
        if self._handed_over and self._reference is not None:
            return self._reference.step(command)
        if self._state is None or self._done:
            raise RuntimeError("step without an episode: call reset first" if self._state is None else _AFTER_DONE)
        valid = command.strip() in engine.commands(self._state)
        text = engine.play(self._state, command)
        observation = self._observe(text)
        won = self._state.won()
        self._num_steps += 1
        self._done = won or self._num_steps >= self._max_steps
        return StepResult(observation, self._done, won, truncated=self._done and not won, admissible=valid)

    def _observe(self, text: str, task: str = "") -> Observation:
        assert self._state is not None
        return make_observation(text, tuple(engine.commands(self._state)), task)

    def _hand_over(self, task: Task, why: str) -> Observation:
        if self._make_reference is None:
            raise UserError(
                f"{task.path}: the native engine cannot run it: {why}. The reference engine runs Python expressions "
                "of a game file: if you trust this one, add --env.allow-reference-engine (or --env.engine textworld)"
            )
        if self._reference is None:
            try:
                self._reference = self._make_reference()
            except UserError as error:
                raise UserError(f"{task.path}: the native engine cannot run it ({why}), and {error}") from None
        try:
            observation = self._reference.reset(task)
        except UserError as error:
            raise UserError(f"{error} (given to the reference engine because {why})") from None
        if task.path not in self._games.handed_over:
            self._games.handed_over.add(task.path)
            _LOG.warning("%s is run by the reference engine: %s", task.path, why)
        self._handed_over = True
        return observation

    @property
    def state(self) -> State:
        """The true state, for planners and for saving. Clone it before changing it."""
        if self._state is None:
            raise RuntimeError("no state without an episode on the native engine: call reset first")
        return self._state

    def restore(self, task: Task, state: State, num_steps: int = 0) -> Observation:
        """Continues from a state of `task`, saved after `num_steps` commands; returns the observation of `look`."""
        self._task, self._state, self._handed_over = task, state.clone(), False
        self._num_steps = num_steps
        self._done = state.won() or num_steps >= self._max_steps
        return self._observe(engine.play(self._state, "look"), state.world.task)

    def spawn(self) -> AlfworldEnv:
        """Creates another episode slot over the same games."""
        return AlfworldEnv(self._games, self._max_steps, self._make_reference)

    def close(self) -> None:
        """Stops the process of the reference engine, if any. Safe to call twice."""
        if self._reference is not None:
            self._reference.close()
            self._reference = None
        self._state, self._done = None, True


_AFTER_DONE = "step after the episode's end: call reset first"


def make_observation(text: str, admissible: tuple[str, ...], task: str = "") -> Observation:
    """The record both engines give. `state_text` is the text and the admissible commands, one a line."""
    return Observation(text, admissible, task, state_text="\n".join((text, *admissible)))
