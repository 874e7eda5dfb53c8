"""Environments: `make` creates one by name, `make_batch` runs many.

Each environment is a package whose `spec` module contains its `EnvSpec`; `paw_fast.registry` finds it by name. See
docs/howto/add_env.md for environments in a user's own file.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paw_fast import registry
from paw_fast.config.ranges import check_ranges
from paw_fast.config.schema import EnvConfig
from paw_fast.envs.base import BaseEnv, BaseExpert, Env, EnvSpec, EpisodeLost, Expert, StepResult
from paw_fast.envs.batch import BatchEnv, make_batch
from paw_fast.envs.isolated.env import IsolatedEnv
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

__all__ = [
    "BaseEnv",
    "BaseExpert",
    "BatchEnv",
    "Env",
    "EnvConfig",
    "EnvSpec",
    "EpisodeLost",
    "Expert",
    "Observation",
    "StepResult",
    "Task",
    "configure",
    "find",
    "make",
    "make_batch",
    "make_env",
    "make_expert",
]


def find(name: str) -> EnvSpec:
    """Returns the spec of an environment: a built-in name, `module:Name`, or an entry point. Raises `UserError`."""
    return registry.find("environments", name)


def make(name: str, **settings: Any) -> Env:
    """Creates an environment by name, with settings of its config class and other keywords of its `make` (`cache_dir`).

    Raises `UserError` for names and settings that do not exist.

    >>> make("alfworld", sise="small")
    Traceback (most recent call last):
    paw_fast.errors.UserError: alfworld has no setting 'sise': it has max_steps, ...
    """
    config, others = configure(name, settings)
    return make_env(config, **others)


def configure(name: str, settings: Mapping[str, Any]) -> tuple[EnvConfig, dict[str, Any]]:
    """Splits the settings of `make` into the environment's config and the other keywords. Raises `UserError`.

    >>> configure("alfworld", {"max_steps": 5, "seed": 3, "cache_dir": "games"})[1]
    {'cache_dir': 'games'}
    """
    spec = find(name)
    own = [f.name for f in dataclasses.fields(spec.config) if f.name != "name"]
    more = list(inspect.signature(spec.make).parameters)[1:]
    changes, others = {}, {}
    for key, value in settings.items():
        key = spec.keywords.get(key, key)
        if key in own:
            changes[key] = value
        elif key in more:
            others[key] = value
        else:
            raise UserError(f"{name} has no setting {key!r}: it has {', '.join((*own, *more))}")
    return spec.make_config(**_as_written(spec.config, changes)), others


def _as_written(config: type[EnvConfig], values: dict[str, Any]) -> dict[str, Any]:
    """Converts values to the types of the config class: paths may be given as strings, tuples as lists."""
    defaults = {f.name: str(f.type) for f in dataclasses.fields(config)}
    out = {}
    for key, value in values.items():
        if isinstance(value, str | os.PathLike) and "Path" in defaults[key]:
            value = Path(value)
        out[key] = tuple(map(str, value)) if isinstance(value, list) else value
    return out


def make_env(config: EnvConfig, **more: Any) -> Env:
    """Creates the environment of a config, in processes of its own if the config has a time limit. Raises `UserError`
    for invalid settings or unusable data."""
    check_ranges(config, "env.")
    config.check()
    spec = find(config.name)
    if config.time_limit_s is not None and not spec.own_limits:
        return IsolatedEnv(config, more)
    return spec.make(config, **more)


def make_expert(env: str | EnvConfig, seed: int = 0, careful: bool = False, **settings: Any) -> Expert:
    """Creates the expert of an environment, which sees only the observations of an episode.

    settings: those of the config's `expert` table. careful: never answer early, whatever the settings. Raises
    `UserError` for an environment without an expert, and for settings that its expert does not have.
    """
    config = find(env).make_config() if isinstance(env, str) else env
    spec = find(config.name)
    if spec.make_expert is None:
        raise UserError(f"the environment {config.name} has no expert: there are no demonstrations to imitate")
    if settings:
        table = getattr(config, "expert", None)
        known = [f.name for f in dataclasses.fields(table)] if table is not None else []
        if unknown := [key for key in settings if key not in known]:
            raise UserError(f"the expert of {config.name} has no setting {unknown[0]!r}")
        changes: dict[str, Any] = {"expert": dataclasses.replace(table, **settings)}  # type: ignore[type-var]
        config = dataclasses.replace(config, **changes)
    return spec.make_expert(config, seed=seed, careful=careful)
