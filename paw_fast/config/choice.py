"""Chooses the config classes of environments and algorithms by name."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from pathlib import Path
from typing import Any

from paw_fast import registry
from paw_fast.config.schema import AlgoConfig, EnvConfig, TrainConfig
from paw_fast.errors import UserError


def env_config(name: str, **changes: Any) -> EnvConfig:
    """The settings of an environment with its own defaults. Raises `UserError` for an unknown name.

    >>> env_config("webshop").max_steps
    15
    """
    return registry.find("environments", name).make_config(**changes)


def algo_config(name: str, base: AlgoConfig | None = None) -> AlgoConfig:
    """The settings of an algorithm: `base`'s values for the settings that both have, else its own defaults."""
    cls = registry.find("algorithms", name).config
    kept = {} if base is None else {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    own = {f.name for f in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in {**kept, "name": name}.items() if key in own})


def registered_configs(group: str) -> list[tuple[str, EnvConfig | AlgoConfig]]:
    """Name and default settings of every registered environment or algorithm that can be loaded."""
    found: list[tuple[str, EnvConfig | AlgoConfig]] = []
    for name in registry.names(group):
        with contextlib.suppress(UserError):  # an entry point that cannot be loaded
            found.append((name, env_config(name) if group == "environments" else algo_config(name)))
    return found


def with_env(config: TrainConfig, name: str) -> TrainConfig:
    """The same run on another environment, with that one's defaults and the same prompt template."""
    if config.env.name == name:
        return config
    return dataclasses.replace(config, env=env_config(name, template=config.env.template))


def with_algo(config: TrainConfig, name: str) -> TrainConfig:
    """The same run with another algorithm; settings that both have keep their values."""
    return config if config.algo.name == name else dataclasses.replace(config, algo=algo_config(name, config.algo))


def data_variable(env: EnvConfig) -> str | None:
    """The variable that decides where this environment's data comes from; None where it is unset or overridden."""
    name = registry.find("environments", env.name).data_variable
    return name if name and getattr(env, "data", None) is None and os.environ.get(name) else None


def with_full_paths(env: EnvConfig) -> EnvConfig:
    """The settings with the data folder that the environment variable names, and with all paths absolute."""
    if variable := data_variable(env):
        changes: dict[str, Any] = {"data": Path(os.environ[variable])}
        env = dataclasses.replace(env, **changes)
    return env.with_full_paths()


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The config with `with_full_paths` of its environment, and the absolute path of its text."""
    text = None if config.eval_text is None else config.eval_text.expanduser().absolute()
    return dataclasses.replace(config, env=with_full_paths(config.env), eval_text=text)


def with_chat_date(config: TrainConfig) -> TrainConfig:
    """Returns the config with the current date for chat templates, if it does not give a date."""
    date = config.rollout.chat_date or datetime.date.today().isoformat()
    return dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, chat_date=date))


def without_consent(config: TrainConfig) -> TrainConfig:
    """Returns the config without permissions to run code of models and games: only the command line may give these,
    not a file, which may come from somebody else."""
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, trust_remote_code=False), env=config.env.with_consent(False)
    )
