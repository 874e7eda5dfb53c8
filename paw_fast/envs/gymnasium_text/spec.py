"""Creates the `EnvSpec` of an environment that gymnasium registers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from paw_fast.config.ranges import SEED, Range
from paw_fast.config.schema import EnvConfig, EnvName
from paw_fast.envs.base import EnvSpec
from paw_fast.envs.gymnasium_text.env import GymnasiumEnv, make_wrapped
from paw_fast.errors import UserError

KIND = "gymnasium"


@dataclass(frozen=True)
class GymnasiumConfig(EnvConfig):
    """An environment of gymnasium whose observations are text."""

    name: EnvName = KIND
    """The environment: `gymnasium:ID`, where ID is registered, or `gymnasium:module:ID`, where importing the module
    registers it."""
    actions: tuple[str, ...] = ()
    """Commands for the actions of a `Discrete` action space, in their order; empty takes the names that the environment
    gives (`action_names`, or `get_action_meanings()`)."""
    observation_key: str = ""
    """Key of the text in a `Dict` observation; empty takes its only text, or `text`, `observation` or `obs`."""
    game_seed: Annotated[int, SEED] = 0
    """Seed of the tasks."""
    num_train: Annotated[int, Range(1, 1 << 20)] = 3600
    """Number of training tasks, each a seed of `reset`."""
    num_unseen: Annotated[int, Range(1, 1 << 20)] = 200
    """Number of tasks with other seeds."""

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ("actions", "observation_key", "num_train")


def check_installed(config: Any) -> None:
    """Raises `UserError` if gymnasium is missing, or the environment cannot be made or is not text."""
    if importlib.util.find_spec("gymnasium") is None:
        raise UserError(f"--env {config.name} needs gymnasium: pip install gymnasium")
    make_wrapped(config).env.close()


def spec_of(environment_id: str) -> EnvSpec:
    """Returns the spec of `--env gymnasium:ID`. What the environment supports is checked before a run begins."""
    if not environment_id:
        raise UserError("--env gymnasium: gives no id, expected gymnasium:ID, as in gymnasium:my_module:MyGame-v0")
    return EnvSpec(
        name=f"{KIND}:{environment_id}",
        config=GymnasiumConfig,
        make=GymnasiumEnv,
        check_installed=check_installed,
        has_state_text=False,
        caveats=(
            "no expert (no --model tiny)",
            "no state text (GiGPO needs --algo.similarity)",
            "a Text action space lists no commands: only answers without a command count as invalid",
        ),
        keywords={"seed": "game_seed"},
    )
