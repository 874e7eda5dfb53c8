"""Names that settings had in the last release: configuration files and the command line still take them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from paw_fast.errors import UserError

_LOG = logging.getLogger("paw_fast.config")

RENAMED = {
    "warm_start.haste": "env.expert.early_answer_prob",
    "warm_start.hasty_share": "env.expert.early_answer_share",
    "warm_start.early_answer_prob": "env.expert.early_answer_prob",
    "warm_start.early_answer_share": "env.expert.early_answer_share",
    "warm_start.hesitation": "warm_start.noop_prob",
    "warm_start.hesitant_share": "warm_start.noop_share",
    "warm_start.slips": "warm_start.mistake_prob",
}
"""Old and new name of each renamed key, as table and key of config.toml joined by dots."""

RENAMED_FLAGS = {"--allow-reference-engine": "--trust-env-code"}
"""The same for options that are not keys of config.toml."""


LOG_WITH_WANDB = "tensorboard,wandb"
"""Value of `log` that does what `wandb = true` did."""


def option(key: str) -> str:
    """The command-line option of a key.

    >>> option("warm_start.noop_prob")
    '--warm-start.noop-prob'
    """
    return "--" + key.replace("_", "-")


def rename_keys(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tables of a configuration file under today's names, and the names that were replaced (old to new).

    Raises `UserError` where a file gives a setting under both names.

    >>> rename_keys({"warm_start": {"slips": 0.1, "layers": 3}}, "my.toml")[0]
    {'warm_start': {'layers': 3, 'mistake_prob': 0.1}}
    """
    renamed = {}
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for old, new in RENAMED.items():
        table, _, key = old.rpartition(".")
        holder = result.get(table)
        if not isinstance(holder, dict) or key not in holder:
            continue
        value = holder.pop(key)
        *tables, key = new.split(".")
        place: dict[str, Any] = result
        for name in tables:
            place[name] = dict(place.get(name, {}))
            place = place[name]
        if key in place:
            raise UserError(f"{where}: {old} is the old name of {new}, and both are given: leave out {old}")
        place[key] = value
        renamed[old] = new
    return result, renamed | _wandb_as_log(result, where)


def _wandb_as_log(values: dict[str, Any], where: str) -> dict[str, str]:
    """Replaces the switch `wandb` of the last release by `log`, in place; returns what was renamed."""
    given = values.get("wandb")
    if not isinstance(given, bool):
        return {}
    del values["wandb"]
    if not given:  # the default, which run directories have
        return {}
    if "log" in values:
        raise UserError(f"{where}: wandb is an old setting, now a part of log, and both are given: leave out wandb")
    values["log"] = LOG_WITH_WANDB
    return {"wandb": "log"}


def rename_options(args: list[str]) -> None:
    """Replaces old option names in command-line arguments, in place, and says the new name of each."""
    options = {option(old): option(new) for old, new in RENAMED.items()} | RENAMED_FLAGS
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if new := options.get(name.replace("_", "-")):
            say_new_name(name, new, "the command line")
            args[i] = new + equals + value
    if "--no-wandb" in args:
        args.remove("--no-wandb")
    if "--wandb" in args:
        if any(arg.partition("=")[0] == "--log" for arg in args):
            raise UserError("--wandb is an old option, now a part of --log, and both are given: leave out --wandb")
        at = args.index("--wandb")
        say_new_name("--wandb", f"--log {LOG_WITH_WANDB}", "the command line")
        args[at : at + 1] = ["--log", LOG_WITH_WANDB]


def say_new_name(old: str, new: str, where: str) -> None:
    """One line that a name is an old one."""
    _LOG.warning("%s: %s is now called %s; the old name will be removed in the next release", where, old, new)
