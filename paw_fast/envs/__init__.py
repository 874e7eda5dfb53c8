"""Environments: `make` one by name, step many with `make_batch`.

Each environment is a package of its own with a `factory` module, whose `make(**settings)` and `searcher()` are
called from here. A new one is added to `_factory` and to `env_config.ENV_SETTINGS`.
"""

from __future__ import annotations

import difflib
import inspect
from types import ModuleType
from typing import Any

from paw_fast.envs.batch import BatchEnv, make_batch
from paw_fast.errors import UserError
from paw_fast.types import Env

__all__ = ["NAMES", "BatchEnv", "make", "make_batch", "make_expert"]

NAMES = ("alfworld", "webshop", "search")


def _factory(name: str) -> ModuleType:
    """The module that makes an environment; imported when it is asked for."""
    if name == "alfworld":
        from paw_fast.envs.alfworld import factory
    elif name == "webshop":
        from paw_fast.envs.webshop import factory
    elif name == "search":
        from paw_fast.envs.search_qa import factory
    else:
        close = difflib.get_close_matches(name, NAMES, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(NAMES)}"
        raise UserError(f"no environment {name!r}: {hint}")
    return factory


def make(name: str, **settings: Any) -> Env:
    """An environment by name, with the settings of its `factory.make` (see there).

    name: one of `NAMES`. Raises `UserError` for names and settings that do not exist.

    >>> make("alfwrld")
    Traceback (most recent call last):
    paw_fast.errors.UserError: no environment 'alfwrld': did you mean 'alfworld'?
    """
    factory = _factory(name)
    known = tuple(inspect.signature(factory.make).parameters)
    for key in settings:
        if key not in known:
            raise UserError(f"{name} has no setting {key!r}: it has {', '.join(known)}")
    return factory.make(**settings)


def make_expert(name: str, **habits: Any) -> Any:
    """An expert of the environment that uses only what an episode has shown: `reset(observation)`, `act(observation)`.

    `habits` are those that its `factory.make_expert` knows. Raises `UserError` for an environment that has none,
    and for a habit that its expert does not have.
    """
    factory = _factory(name)
    if not hasattr(factory, "make_expert"):
        raise UserError(f"no searcher for the environment {name!r}: nothing can be imitated there")
    known = inspect.signature(factory.make_expert).parameters
    if unknown := [habit for habit in habits if habit not in known]:
        raise UserError(f"the expert of {name!r} knows no {unknown[0]}: set --warm-start.{unknown[0]} 0")
    return factory.make_expert(**habits)
