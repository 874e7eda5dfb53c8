"""Chooses the settings that lie below the options of `paw-fast train`: preset and configuration file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paw_fast import registry
from paw_fast.cli.options import take
from paw_fast.config import TrainConfig, env_config, load_preset, load_toml, read_toml, with_algo
from paw_fast.config.resume import differences
from paw_fast.config.toml import names_every_setting
from paw_fast.errors import UserError
from paw_fast.planning.machine import device_files


def base_config(args: Sequence[str], preset: str | None, file: Path | None) -> tuple[TrainConfig, str]:
    """The settings below the options, and what is to be said of the preset that was chosen for the user.

    args: the options, of which `--env`, `--algo` and `--model` decide here. preset, file: --preset and --config. A
    file that begins with `base` and one that holds all settings (a run's config.toml) need no preset; others are laid
    over it. Raises `UserError`.
    """
    given = {name: take(list(args), name) for name in ("env", "algo", "model")}
    env, algo = given["env"], given["algo"]
    over = read_toml(file) if file else {}
    of_env, of_algo, of_model = (_name(over, table, key) for table, key in _NAMES)
    if file and env and of_env not in (None, env):
        raise UserError(f"--env {env}: {file} is for the environment {of_env}")
    if file and preset and over.get("base", preset) != preset:
        raise UserError(f"--preset {preset}: {file} begins with base = {over['base']!r}; leave one of them out")
    name = env or of_env
    plain = TrainConfig(env=env_config(name or "alfworld"))
    plain = with_algo(plain, algo) if algo and not of_algo else plain
    whole = file is not None and (_is_of_a_run(file) or names_every_setting(over, load_toml(file, plain)))
    why = ""
    if whole:
        config = plain
    elif preset is None and "base" not in over:
        preset, reason = default_preset(given["model"] or of_model, name)
        why = f"preset {preset}: {reason} (--preset takes another; see `paw-fast recipes`)"
    if not whole:
        config = load_preset(preset, name) if preset else plain
        config = with_algo(config, algo) if algo and not of_algo else config
    if file is not None:
        below, config = config, load_toml(file, config, of_run=_is_of_a_run(file))
        config = with_algo(config, algo) if algo else config
        if not whole:
            _check_critic(below, config, over, file)
    return config, why


_NAMES = (("env", "name"), ("algo", "name"), ("model", "path"))


def _name(values: Mapping[str, Any], table: str, key: str) -> str | None:
    found = values.get(table)
    name = found.get(key) if isinstance(found, Mapping) else None
    return name if isinstance(name, str) else None


def _is_of_a_run(file: Path) -> bool:
    """Whether a file is the config.toml of a run directory, which depends on no preset, also where it was written by
    an earlier version that had fewer settings."""
    return file.name == "config.toml" and file.with_name("versions.json").is_file()


def _check_critic(below: TrainConfig, config: TrainConfig, over: Mapping[str, Any], file: Path) -> None:
    """Refuses a file's critic settings with an algorithm that has no critic."""
    if "critic" in over and not registry.find("algorithms", config.algo.name).needs_critic:
        changed = differences(below.critic, config.critic, "critic.")
        if changed:
            raise UserError(
                f"{file}: {changed[0][0]} is a setting of algorithms that need a critic, and --algo is "
                f"{config.algo.name}: leave it out"
            )


def default_preset(model: str | None, env: str | None) -> tuple[str, str]:
    """The preset where none is named, and why: by the model, else by the hardware."""
    from paw_fast.models.smollm2 import SMOLLM2

    if model == SMOLLM2 and env in (None, "alfworld"):
        return "smollm2", "it suits that model"
    name = _gpu_name()
    return ("qwen2.5-1.5b", f"{name} was found") if name else ("tiny", "no CUDA device was found")


def _gpu_name() -> str | None:
    """The GPU that torch would use. Where the system has no device file of any, torch (a second) is not asked."""
    if sys.platform == "linux" and "torch" not in sys.modules and not any(device_files()):
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
