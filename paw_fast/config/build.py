"""Makes configs in Python: a preset with some settings changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paw_fast.config.renames import rename_keys
from paw_fast.config.schema import TrainConfig
from paw_fast.config.toml import from_mapping, load_preset
from paw_fast.config.validation import validate
from paw_fast.errors import UserError

NAMED = {"env": "name", "algo": "name", "pipeline": "name", "model": "path"}
"""Tables that a text can stand for, as on the command line, and the key that it gives: `env="alfworld"`."""


def make_config(preset: str | Path = "tiny", **settings: Any) -> TrainConfig:
    """Returns the config of a preset with some settings changed, validated.

    Args:
        preset: name of a recipe (`paw-fast recipes` lists them), or path of a TOML file such as a run's config.toml.
        settings: as in config.toml. A table is a dict, or a key with a dot (`**{"rollout.groups": 2}`). A text stands
            for the name of `env`, `algo` and `pipeline` and for the path of `model`.

    Raises `UserError` for a preset or setting that does not exist, with the nearest name, and for values out of range.

    >>> config = make_config("tiny", env="alfworld", steps=2, rollout={"groups": 4})
    >>> config.steps, config.rollout.groups, config.rollout.group_size
    (2, 4, 8)
    """
    values = _tables(settings)
    env = values.get("env", {}).get("name")
    if env is not None and not isinstance(env, str):
        raise UserError(f"env is {env!r}, expected the name of an environment, as in env='alfworld'")
    return change_config(load_preset(str(preset), env), **settings)


def change_config(config: TrainConfig, **settings: Any) -> TrainConfig:
    """Returns a config with some settings changed, given as for `make_config`, validated. Raises `UserError`."""
    values, _ = rename_keys(_tables(settings), "settings")
    changed = from_mapping(TrainConfig, values, config, "settings")
    validate(changed)
    return changed


def _tables(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as nested tables of values that TOML has.

    >>> _tables({"env": "webshop", "env.max_steps": 3, "optim": {"learning_rate": 1e-4}})
    {'env': {'name': 'webshop', 'max_steps': 3}, 'optim': {'learning_rate': 0.0001}}
    """
    tables: dict[str, Any] = {}
    for name, value in settings.items():
        *above, key = name.split(".")
        if not above and key in NAMED and isinstance(value, str | Path):
            above, key, value = [key], NAMED[key], str(value)
        place = tables
        for one in above:
            place = place.setdefault(one, {})
            if not isinstance(place, dict):
                raise UserError(f"settings: {one} is given as a value and as a table ({name})")
        value = _plain(value)
        if isinstance(value, dict) and isinstance(place.get(key), dict):
            place[key] |= value
        else:
            place[key] = value
    return tables


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _tables({str(key): one for key, one in value.items()})
    if isinstance(value, tuple | list):
        return [str(one) if isinstance(one, Path) else one for one in value]
    return "none" if value is None else value
