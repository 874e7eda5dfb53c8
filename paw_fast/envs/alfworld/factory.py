"""Makes ALFWorld environments and their expert, for `envs.make("alfworld")` and `envs.make_expert("alfworld")`."""

from __future__ import annotations

import os

from paw_fast.config.env import EnvConfig
from paw_fast.envs.alfworld.env import AlfworldEnv, GameSet
from paw_fast.envs.alfworld.expert import SearcherExpert
from paw_fast.errors import UserError
from paw_fast.types import Env

_ENGINES = ("native", "textworld")


def make(
    engine: str = "native", data: str | os.PathLike[str] | None = None, max_steps: int = 50, size: str = "small",
    seed: int = 0, num_train: int = EnvConfig.num_train, num_unseen: int = EnvConfig.num_unseen,
    cache_dir: str | os.PathLike[str] | None = None, allow_reference_engine: bool = False,
) -> Env:  # fmt: skip
    """An ALFWorld environment.

    engine: "native" (ours) or "textworld" (the reference, the extra `alfworld`). data: the official data set's
    folder; None takes the variable ALFWORLD_DATA, and where that is not set games are generated. For generated
    games: size ("small", "medium", "full"), seed, num_train, num_unseen, cache_dir (default: paw-fast in the XDG
    cache folder). allow_reference_engine: the reference plays games whose rules the native engine does not know; it
    runs Python expressions of the game file. Raises `UserError`.
    """
    if engine not in _ENGINES:
        raise UserError(f"alfworld has no engine {engine!r}: choose {' or '.join(_ENGINES)}")
    games = GameSet(data, size, seed, num_train, num_unseen, cache_dir)
    from paw_fast.envs.alfworld.textworld.env import ReferenceEnv

    if engine == "textworld":
        return ReferenceEnv(games, max_steps)
    shared: list[ReferenceEnv] = []

    def reference() -> ReferenceEnv:
        if shared:
            return shared[0].spawn()
        shared.append(ReferenceEnv(games, max_steps))
        return shared[0]

    return AlfworldEnv(games, max_steps, reference=reference if allow_reference_engine else None)


def make_expert() -> SearcherExpert:
    """The expert that knows only what the episode has shown."""
    return SearcherExpert()
