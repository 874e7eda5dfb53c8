"""Defines the settings of ALFWorld."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from paw_fast.config.ranges import SEED, Range
from paw_fast.config.schema import EnvConfig, EnvName


@dataclass(frozen=True)
class AlfworldConfig(EnvConfig):
    """ALFWorld: household tasks as a text game."""

    name: EnvName = "alfworld"
    """The environment: `alfworld`, `webshop`, `search`, `babyai`, `scienceworld`, one of another installed package, or
    `module:Class` from a Python file in the current folder."""
    data: Path | None = None
    """Folder of the official games; without it the variable ALFWORLD_DATA, else games are generated."""
    game_seed: Annotated[int, SEED] = 0
    """Seed of the generated games."""
    engine: Literal["native", "textworld"] = "native"
    """The game engine: this package's, or the reference (needs the `alfworld` extra)."""
    allow_reference_engine: bool = False
    """Games whose rules the native engine does not know are run by the reference, which evaluates Python expressions
    in the game file. Counts on the command line only, never from a run's config."""
    size: Literal["mini", "small", "medium", "full"] = "small"
    """Size of generated households. `mini`: 3-4 receptacles, and tasks of two kinds (place an object, look at one in
    light); `small`: 6-10; `medium`: 9-17; `full`: as many as the official games have."""
    num_train: Annotated[int, Range(1, 1 << 20)] = 3600
    """Generated training games."""
    num_unseen: Annotated[int, Range(1, 1 << 20)] = 200
    """Generated games in rooms that training never sees."""

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ("data", "size", "num_train")
    CONSENT_FIELDS: ClassVar[tuple[str, ...]] = ("engine", "allow_reference_engine")

    def code_in_data(self) -> str:
        """The reference engine evaluates expressions in game files; generated games hold none."""
        if self.engine == "textworld" and self.data is not None:
            engine = "the reference engine, which evaluates Python expressions of game files"
            return f"the games in {self.data} are run by {engine}"
        return ""

    def with_consent(self, given: bool) -> AlfworldConfig:
        return dataclasses.replace(self, allow_reference_engine=given)
