"""Defines the settings of ScienceWorld."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from paw_fast.config.ranges import SECONDS, SEED, Range
from paw_fast.config.schema import EnvConfig, EnvName


@dataclass(frozen=True)
class ScienceWorldConfig(EnvConfig):
    """ScienceWorld: science experiments in a text world."""

    name: EnvName = "scienceworld"
    """The environment: `alfworld`, `webshop`, `search`, `babyai`, `scienceworld`, one of another installed package, or
    `module:Class` from a Python file in the current folder."""
    max_steps: Annotated[int, Range(1, 1 << 16)] = 100
    """An episode ends after this many actions (default from scienceworld)."""
    time_limit_s: Annotated[float | None, SECONDS] = 60.0
    """Seconds that a reset or a step may take. The simulator and its JVM run in processes of their own: one that
    exceeds the limit, or ends, is restarted, and its episodes are played again. `None`: no limit, and one JVM, which is
    started by this process."""
    processes: Annotated[int, Range(0, 1 << 10)] = 2
    """With --env.time-limit-s: number of processes that the episodes share, each with a JVM; 0 is one per CPU core, at
    most 8."""
    task_names: tuple[str, ...] = ()
    """Kinds of tasks, as in `boil` or `find-living-thing`; empty takes all 30."""
    simplifications: tuple[str, ...] = ()
    """Simplifications of the simulator, as in `openDoors`; `easy` is all of them."""
    max_variations: Annotated[int, Range(0, 1 << 16)] = 0
    """At most this many variations of each kind of task in a split, drawn by --env.game-seed; 0 takes all."""
    game_seed: Annotated[int, SEED] = 0
    """Seed of that draw."""
    reward: Literal["score", "success"] = "score"
    """Reward of an action: what it adds to the task's score, which is 1 when the task is complete (an action that fails
    the task takes back what was reached); or 1 for completing the task and else 0."""
    list_actions: bool = False
    """List the actions that are possible in each observation, as `verl` prompts show them: hundreds, which the
    simulator takes a second to find."""
    jvm_memory_mb: Annotated[int, Range(128, 1 << 20)] = 1024
    """Largest heap of a JVM, in MiB."""

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ("task_names", "simplifications", "reward")
    CHANGEABLE_ON_RESUME: ClassVar[tuple[str, ...]] = ("jvm_memory_mb",)
