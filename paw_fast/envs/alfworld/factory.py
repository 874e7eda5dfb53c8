"""Creates ALFWorld environments and their expert."""

from __future__ import annotations

import os

from paw_fast.envs.alfworld.config import AlfworldConfig
from paw_fast.envs.alfworld.env import AlfworldEnv, GameSet
from paw_fast.envs.alfworld.expert import SearcherExpert
from paw_fast.envs.alfworld.games import GENERATOR_VERSIONS, dataset_root, reference_texts
from paw_fast.envs.base import Env
from paw_fast.errors import UserError
from paw_fast.extras import install_hint

_ENGINES = ("native", "textworld")


def make(config: AlfworldConfig, cache_dir: str | os.PathLike[str] | None = None) -> Env:
    """Creates an ALFWorld environment.

    Official games are read from `config.data` or the folder in ALFWORLD_DATA. If neither is set, games are generated in
    `cache_dir` (default: paw-fast in the XDG cache folder). Raises `UserError`.
    """
    if config.engine not in _ENGINES:
        raise UserError(f"alfworld has no engine {config.engine!r}: choose {' or '.join(_ENGINES)}")
    games = GameSet(config.data, config.size, config.game_seed, config.num_train, config.num_unseen, cache_dir)
    from paw_fast.envs.alfworld.textworld.env import ReferenceEnv

    if config.engine == "textworld":
        return ReferenceEnv(games, config.max_steps)
    shared: list[ReferenceEnv] = []

    def reference() -> ReferenceEnv:
        if shared:
            return shared[0].spawn()
        shared.append(ReferenceEnv(games, config.max_steps))
        return shared[0]

    return AlfworldEnv(games, config.max_steps, reference=reference if config.allow_reference_engine else None)


def generator(config: AlfworldConfig) -> str:
    """Version of the generated games; empty for games from files."""
    is_official = config.data is not None or bool(os.environ.get("ALFWORLD_DATA"))
    return "" if is_official else f"generated {config.size} games, version {GENERATOR_VERSIONS[config.size]}"


def check_installed(config: AlfworldConfig) -> None:
    """Raises `UserError` if the reference engine is wanted and not installed, or the official games are not there."""
    if config.engine == "textworld" and reference_texts() is None:
        raise UserError(f"--env.engine textworld: the reference engine is not installed: {install_hint('alfworld')}")
    if data := config.data or os.environ.get("ALFWORLD_DATA"):
        dataset_root(data)


def make_expert(config: AlfworldConfig, seed: int = 0, careful: bool = False) -> SearcherExpert:
    """Creates the expert, which sees only the observations. It is deterministic and never answers early."""
    return SearcherExpert()
