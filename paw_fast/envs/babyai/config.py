"""Defines the settings of BabyAI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from paw_fast.config.ranges import SEED, Range
from paw_fast.config.schema import EnvConfig, EnvName


@dataclass(frozen=True)
class BabyaiConfig(EnvConfig):
    """BabyAI: missions in a grid of rooms, as text."""

    name: EnvName = "babyai"
    """The environment: `alfworld`, `webshop`, `search`, `babyai`, `scienceworld`, one of another installed package, or
    `module:Class` from a Python file in the current folder."""
    max_steps: Annotated[int, Range(1, 1 << 16)] = 64
    """An episode ends after this many actions (default from minigrid: its limit in levels of one room)."""
    levels: tuple[str, ...] = ("GoToLocal",)
    """Levels of BabyAI, as in `GoToLocal` or `BabyAI-GoToLocal-v0`; the tasks take turns among several."""
    game_seed: Annotated[int, SEED] = 0
    """Seed of the generated missions."""
    num_train: Annotated[int, Range(1, 1 << 20)] = 3600
    """Generated training missions."""
    num_unseen: Annotated[int, Range(1, 1 << 16)] = 200
    """Generated missions that training never sees."""

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ("levels", "num_train")
