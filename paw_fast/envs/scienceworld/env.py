"""Runs ScienceWorld episodes on the package's simulator, as an `Env`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from paw_fast.envs.base import BaseEnv, EpisodeLost, StepResult
from paw_fast.envs.scienceworld.config import ScienceWorldConfig
from paw_fast.envs.scienceworld.jvm import Jvm
from paw_fast.envs.scienceworld.variations import check_names, list_tasks
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

TASK_PREFIX = "Task Description:"
NOT_UNDERSTOOD = ("No known action matches that input.", "Unknown action.")
EASY = "easy"


class Shared:
    """What the episode slots of an environment share: the JVM, and the names and numbers of its tasks."""

    def __init__(self, config: ScienceWorldConfig) -> None:
        self.config, self.jvm = config, Jvm(config.jvm_memory_mb)
        simulator, call = self.jvm.new_simulator(), self.jvm.call
        known = [str(name) for name in call(simulator.getTaskNames)]
        simplifications = str(call(simulator.getPossibleSimplifications)).split(", ")
        check_names(config, known, [*simplifications, EASY])
        self.totals = {name: int(call(simulator.getTaskMaxVariations, name)) for name in known}


class ScienceWorldEnv(BaseEnv):
    """Runs one episode at a time, on a simulator in a JVM that the slots share.

    The first observation is what `look around` shows. An episode ends when the simulator says that the task is complete
    or failed, and is truncated after `max_steps` commands. The score of a step is what it adds to that of the
    simulator, which is 0 to 1 and counts as 0 in a failed task. A JVM that ends is restarted by the next reset.
    """

    name = "scienceworld"

    def __init__(self, config: ScienceWorldConfig, shared: Shared | None = None) -> None:
        self._config, self._shared = config, shared or Shared(config)
        self._jvm = self._shared.jvm
        self._simulator: Any = None
        self._num_starts, self._num_steps, self._done = -1, 0, True
        self._score = 0.0

    @property
    def disjoint_splits(self) -> bool:
        """True: the splits have different variations."""
        return True

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "dev" (also "unseen", "eval") or "test". Raises `UserError` for other splits."""
        return list_tasks(self._config, self._shared.totals, split)

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `EpisodeLost` if the JVM ends, and `UserError` for tasks of other environments."""
        kind, variation = task.info.get("task"), task.info.get("variation")
        if kind not in self._shared.totals or not isinstance(variation, int):
            raise UserError(f"the task {task.task_id!r} is none of scienceworld: take one of env.tasks(...)")
        if not 0 <= variation < self._shared.totals[kind]:
            raise UserError(f"{kind} has the variations 0 to {self._shared.totals[kind] - 1}, not {variation}")
        self._done = True
        if self._simulator is None or self._num_starts != self._jvm.num_starts or self._jvm.pid is None:
            self._simulator = self._jvm.new_simulator()
            self._num_starts = self._jvm.num_starts
        simplifications = ",".join(self._config.simplifications)
        self._call("load", kind, variation, simplifications, False)
        self._call("reset")
        text = self._call("step", "look around")
        description = str(self._call("freeActionTaskDesc")).strip().removeprefix(TASK_PREFIX).strip()
        self._num_steps, self._done, self._score = 0, False, 0.0
        notes = {"task": kind, "variation": variation, "simplifications": simplifications}
        return self._observe(text, description, notes)

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `EpisodeLost` if the JVM ends, and `RuntimeError` before the first reset or
        after `done`."""
        if self._done:
            raise RuntimeError("step without an episode: call reset first")
        if self._num_starts != self._jvm.num_starts or self._jvm.pid is None:
            self._done = True
            raise EpisodeLost("--env scienceworld: its JVM was restarted because of another episode", caused=False)
        self._num_steps += 1
        text = self._call("step", command)
        score, completed = float(self._call("getScore")), bool(self._call("getCompleted"))
        failed = score < 0
        won = completed and score >= 1
        ended = completed or failed
        over = self._num_steps >= self._config.max_steps
        self._done = ended or over
        gain, self._score = max(0.0, score) - self._score, max(0.0, score)
        return StepResult(
            self._observe(text), self._done, won, reward=gain if self._config.reward == "score" else float(won),
            score=gain, truncated=over and not ended, admissible=text.strip() not in NOT_UNDERSTOOD,
        )  # fmt: skip

    def _observe(self, text: str, task: str = "", notes: dict[str, Any] | None = None) -> Observation:
        look, inventory = self._call("freeActionLook"), self._call("freeActionInventory")
        actions: tuple[str, ...] = ()
        if self._config.list_actions:
            actions = tuple(sorted(map(str, self._call("getValidActionObjectCombinations"))))
        # `reset task` starts the episode again, at the same score.
        actions = tuple(action for action in actions if action != "reset task")
        return Observation(
            _tidy(text), actions, task, state_text=f"{_tidy(look)}\n{_tidy(inventory)}", notes=notes or {}
        )

    def _call(self, name: str, *args: Any) -> Any:
        try:
            return self._jvm.call(functools.partial(getattr(self._simulator, name), *args))
        except EpisodeLost:
            self._done, self._simulator = True, None
            raise

    def spawn(self) -> ScienceWorldEnv:
        """Creates another episode slot: a simulator in the same JVM."""
        return ScienceWorldEnv(self._config, self._shared)

    def close(self) -> None:
        """Ends the episode. The JVM ends when no slot is left. Safe to call twice."""
        self._done, self._simulator = True, None


def _tidy(text: Any) -> str:
    """A text of the simulator without blanks at the ends of its lines."""
    return "\n".join(line.rstrip() for line in str(text).strip().split("\n"))
