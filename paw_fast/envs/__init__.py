"""Environments: `make` one by name, step many with `make_batch`."""

from __future__ import annotations

import difflib
from typing import Any

from paw_fast.types import Env, UserError

from .batch import BatchEnv, make_batch

__all__ = ["BatchEnv", "make", "make_batch"]

_ENGINES = ("native", "textworld")


def make(name: str, engine: str = "native", data: Any = None, max_steps: int = 50, **settings: Any) -> Env:
    """An environment by name.

    name: "alfworld". engine: "native" (ours) or "textworld" (the reference, the extra `alfworld`).
    data: the official data set's folder; None takes the variable ALFWORLD_DATA, and where that is not set
    games are generated. settings, for generated games: size ("small", "medium", "full"), seed, num_train,
    num_unseen, cache_dir (default: paw-fast in the XDG cache folder).
    Raises `UserError` for names and settings that do not exist.

    >>> make("alfwrld")
    Traceback (most recent call last):
    paw_fast.types.UserError: no environment 'alfwrld': did you mean 'alfworld'?
    """
    if name != "alfworld":
        close = difflib.get_close_matches(name, ["alfworld"], cutoff=0.5)
        raise UserError(
            f"no environment {name!r}: " + (f"did you mean {close[0]!r}?" if close else "there is alfworld")
        )
    from .alfworld.env import AlfworldEnv, GameSet

    if engine not in _ENGINES:
        raise UserError(f"alfworld has no engine {engine!r}: choose {' or '.join(_ENGINES)}")
    known = ("size", "seed", "num_train", "num_unseen", "cache_dir")
    for key in settings:
        if key not in known:
            raise UserError(f"alfworld has no setting {key!r}: it has {', '.join(known)}")
    games = GameSet(data, **settings)
    from .alfworld.reference import ReferenceEnv

    if engine == "textworld":
        return ReferenceEnv(games, max_steps)
    shared: list[ReferenceEnv] = []

    def reference() -> ReferenceEnv:
        if shared:
            return shared[0].spawn()
        shared.append(ReferenceEnv(games, max_steps))
        return shared[0]

    return AlfworldEnv(games, max_steps, reference=reference)


def searcher(name: str) -> Any:
    """An expert of the environment that uses only what an episode has shown: `reset(observation)`, `act(observation)`.

    Raises `UserError` for an environment that has none.
    """
    if name != "alfworld":
        raise UserError(f"no searcher for the environment {name!r}: there is one for alfworld")
    from .alfworld.searcher import SearcherExpert

    return SearcherExpert()
