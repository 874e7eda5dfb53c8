"""Chooses the config classes of algorithms by name."""

from __future__ import annotations

import dataclasses

from paw_fast import registry
from paw_fast.config.schema import AlgoConfig, TrainConfig


def algo_config(name: str, base: AlgoConfig | None = None) -> AlgoConfig:
    """The settings of an algorithm: `base`'s values for the settings that both have, else its own defaults."""
    cls = registry.find("algorithms", name).config
    kept = {} if base is None else {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    own = {f.name for f in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in {**kept, "name": name}.items() if key in own})


def with_algo(config: TrainConfig, name: str) -> TrainConfig:
    """The same run with another algorithm; settings that both have keep their values."""
    return config if config.algo.name == name else dataclasses.replace(config, algo=algo_config(name, config.algo))
