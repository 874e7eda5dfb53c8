"""Creates the `EnvSpec` of an environment behind a server of OpenEnv."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from paw_fast.config.ranges import SECONDS, SEED, Range
from paw_fast.config.schema import EnvConfig, EnvName
from paw_fast.envs.base import EnvSpec
from paw_fast.envs.openenv_server.env import OpenEnvEnv, read_schema
from paw_fast.envs.openenv_server.fields import choose
from paw_fast.errors import UserError
from paw_fast.extras import install_hint

KIND = "openenv"


@dataclass(frozen=True)
class OpenEnvConfig(EnvConfig):
    """An environment behind a server of OpenEnv."""

    name: EnvName = KIND
    """The environment: `openenv:URL`, as in `openenv:http://localhost:8000`."""
    time_limit_s: Annotated[float | None, SECONDS] = 60.0
    """Seconds that the server may take for a reset or a step, or be down before a reset; the episode is then played
    again. `None`: no limit."""
    action_field: str = ""
    """Field of an action that takes the command; empty takes its only text, or `command`, `action`, `message`, ..."""
    observation_field: str = ""
    """Field of an observation that the policy reads; empty takes its only text, or `text`, `observation`, `message`,
    ..., else the whole observation as JSON."""
    reward: Literal["success", "server"] = "success"
    """Reward of an action: 1 for winning and else 0, or the server's reward."""
    game_seed: Annotated[int, SEED] = 0
    """Seed of the tasks."""
    num_train: Annotated[int, Range(1, 1 << 20)] = 3600
    """Number of training tasks, each a seed of `reset`."""
    num_unseen: Annotated[int, Range(1, 1 << 20)] = 200
    """Number of tasks with other seeds."""

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ("action_field", "observation_field", "reward")


def check_installed(config: OpenEnvConfig) -> None:
    """Raises `UserError` if openenv is missing, no server answers, or its actions are not text."""
    if importlib.util.find_spec("openenv") is None:
        raise UserError(f"--env {config.name} needs openenv: {install_hint('openenv')}")
    url = config.name.partition(":")[2]
    choose(read_schema(url, config.name), config.action_field, config.observation_field, config.name)


def make(config: OpenEnvConfig) -> OpenEnvEnv:
    """Creates an environment. Raises `UserError` as `check_installed` does."""
    check_installed(config)
    return OpenEnvEnv(config)


def spec_of(url: str) -> EnvSpec:
    """Returns the spec of `--env openenv:URL`. The server is asked for its fields before a run begins."""
    if not url:
        raise UserError("--env openenv: gives no URL, expected openenv:URL, as in openenv:http://localhost:8000")
    return EnvSpec(
        name=f"{KIND}:{url}",
        config=OpenEnvConfig,
        make=make,
        check_installed=check_installed,
        has_state_text=False,
        own_limits=True,
        caveats=(
            "no expert (no --model tiny)",
            "no state text (GiGPO needs --algo.similarity)",
            "a server that lists no commands: only answers without a command count as invalid",
        ),
        keywords={"seed": "game_seed"},
    )
