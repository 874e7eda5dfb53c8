"""Defines the arms of a comparison: changes of the settings that all arms share. Imports no torch.

An arm is built in, or a table of a TOML file:

    [arms.strong]
    base = "paw"             # an arm that these changes lie over; optional
    about = "lambda 2"       # optional
    paw.lambda_0 = 2.0       # any settings, as in config.toml
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from paw_fast.config import TrainConfig, describe, read_toml, recipes, validate
from paw_fast.config.renames import rename_keys
from paw_fast.config.resume import differences, flag
from paw_fast.config.toml import from_mapping
from paw_fast.errors import UserError

_FROM_RECIPES = ("echo", "tapo")
_OWN_KEYS = ("base", "about")


@dataclass(frozen=True)
class Arm:
    """An arm: a name, settings as nested tables, and what they are in words. Produced by `find_arms`.

    >>> find_arms(["rl"])[0].settings
    {'paw': {'enabled': False}}
    """

    name: str
    settings: Mapping[str, Any]
    about: str


@cache
def built_in() -> dict[str, Arm]:
    """The arms that need no file, by name. ECHO, TAPO and the ablations are the [paw] tables of the recipes."""
    arms = [
        Arm("rl", {"paw": {"enabled": False}}, "reinforcement learning alone, without the world-model loss"),
        Arm("paw", {"paw": {"enabled": True}}, "with the world-model loss, as the other options configure it"),
        Arm(
            "placebo",
            {"paw": {"enabled": True, "target": "shuffled"}},
            "placebo: predicts the observation of another transition",
        ),
        Arm(
            "other-task",
            {"paw": {"enabled": True, "target": "other-task"}},
            "placebo: predicts an observation of another task",
        ),
        Arm(
            "noise",
            {"paw": {"enabled": True, "target": "noise"}},
            "placebo: a random gradient of the world-model gradient's norm",
        ),
        Arm(
            "surprise",
            {"paw": {"enabled": True, "selection": "surprise"}},
            "selects transitions by the surprise of their actions, not by entropy",
        ),
    ]
    for name, path in recipes().items():
        if name in _FROM_RECIPES or (name.startswith("ablation-") and name != "ablation-rl-alone"):
            arms.append(Arm(name, {"paw": {"enabled": True, **read_toml(path)["paw"]}}, describe(path)))
    return {arm.name: arm for arm in arms}


def find_arms(names: Sequence[str]) -> list[Arm]:
    """The arms of `--arms`: names of built-in ones, and TOML files, each of which gives all arms in it.

    Raises `UserError` for an unknown arm, one that is given twice, and a file that has none or a damaged one.
    """
    arms: list[Arm] = []
    for name in names:
        if name.endswith(".toml"):
            arms += _read_arms(Path(name))
        elif name in built_in():
            arms.append(built_in()[name])
        else:
            near = difflib.get_close_matches(name, built_in(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(built_in())}, and TOML files"
            raise UserError(f"--arms: unknown arm {name!r}; {hint}")
    twice = {arm.name for arm in arms if sum(other.name == arm.name for other in arms) > 1}
    if twice:
        raise UserError(f"--arms: the arm {min(twice)} is given twice")
    if not arms:
        raise UserError("--arms needs names of arms, such as --arms rl,paw")
    return arms


def _read_arms(path: Path) -> list[Arm]:
    tables = read_toml(path)
    others = sorted(set(tables) - {"arms"})
    if others:
        raise UserError(
            f"{path}: unknown key '{others[0]}', expected tables [arms.NAME] alone: settings of all arms are options"
        )
    arms = tables.get("arms")
    if not isinstance(arms, Mapping) or not arms:
        raise UserError(f"{path} has no arms: give each a table [arms.NAME] with the settings that it changes")
    found: dict[str, Arm] = {}
    for name, table in arms.items():
        where = f"{path}: arms.{name}"
        if not isinstance(table, Mapping):
            raise UserError(f"{where} is {table!r}, expected a table")
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
            raise UserError(f"{where}: the name is used for a folder; use letters, digits, '-', '_' and '.'")
        under, about = (table.get(key) for key in _OWN_KEYS)
        known = {**built_in(), **found}
        if under is not None and under not in known:
            raise UserError(f"{where}: base is {under!r}, expected an arm above it or one of {', '.join(built_in())}")
        if about is not None and not isinstance(about, str):
            raise UserError(f"{where}: about is {about!r}, expected text")
        own = {key: value for key, value in table.items() if key not in _OWN_KEYS}
        settings = _merged(known[under].settings if under else {}, own)
        found[name] = Arm(name, settings, about or _in_words(own, under))
    return list(found.values())


def _merged(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _in_words(settings: Mapping[str, Any], under: Any) -> str:
    text = ", ".join(f"{key} = {value}" for key, value in flat(settings).items()) or "as the other options say"
    return f"{under} with {text}" if under else text


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys.

    >>> flat({"paw": {"tau": 0.5}})
    {'paw.tau': 0.5}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


# ---------------------------------------------------------------------------------------------- their settings

_SAME_TASKS = "all arms play the same tasks with the same seeds"
_SAME_START = "all arms start from the same model; run one comparison for each value"
_SAME_CURVE = "the arms' curves could not be compared; give it as an option of all arms"
_SHARED = {
    "seed": _SAME_TASKS, "run_dir": "each run has its own folder", "push_to_hub": "runs are uploaded by paw-fast push",
    "push_private": "runs are uploaded by paw-fast push", "algo.dynamic_sampling": _SAME_TASKS,
    "env.template": "", "env.history": "", "env.max_observation_*": "", "env.*": _SAME_TASKS,
    "rollout.groups": _SAME_TASKS, "rollout.group_size": _SAME_TASKS, "steps": _SAME_CURVE, "eval_*": _SAME_CURVE,
    "rollout.eval_temperature": _SAME_CURVE, "model.*": _SAME_START, "warm_start.cache": "",
    "warm_start.*": _SAME_START,
}  # fmt: skip
"""Settings (`*` stands for any) that an arm may not change, and why; an empty reason allows them. The first pattern
that fits decides, and others may be changed."""
_SHARED_WITH_WARM_START = {
    name: f"the warm start depends on it, and {_SAME_START}"
    for name in (
        "layout", "env.template", "env.history", "env.max_observation_*", "rollout.max_sequence_tokens", "token_budget",
        "logits_budget_mb",
    )
}  # fmt: skip


def arm_config(arm: Arm, base: TrainConfig) -> TrainConfig:
    """The settings of an arm over those that all arms share, validated.

    Raises `UserError`, naming the arm, for settings that this version does not have, that contradict each other, and
    that would make the arms' runs incomparable.
    """
    where = f"arm {arm.name}"
    values, _ = rename_keys(dict(arm.settings), where)
    config = from_mapping(TrainConfig, values, base, where)
    rules = {**_SHARED_WITH_WARM_START, **_SHARED, **_SHARED_WITH_WARM_START} if base.model.path == "tiny" else _SHARED
    for name, before, now in differences(base, config):
        reason = next((why for pattern, why in rules.items() if fnmatchcase(name, pattern)), "")
        if reason:
            raise UserError(f"{where} changes {name} from {before} to {now}: {reason}")
    try:
        validate(config)
    except UserError as error:
        hint = ""
        if config.layout == "trajectory" and "--layout" in str(error):
            hint = " (--preset tiny-window is the tiny preset in that layout)"
        raise UserError(f"{where}: {error}{hint}") from error
    return config


def arm_configs(arms: Sequence[Arm], base: TrainConfig) -> dict[str, TrainConfig]:
    """The settings of each arm, by its name. Raises `UserError` also where two arms are the same."""
    if base.algo.dynamic_sampling:
        raise UserError(
            "--algo.dynamic-sampling plays further groups depending on their returns, so that the arms would not play "
            "the same tasks: leave it out"
        )
    if base.push_to_hub is not None:
        raise UserError("--push-to-hub: upload one of the runs with paw-fast push RUN NAME")
    configs: dict[str, TrainConfig] = {}
    for arm in arms:
        config = arm_config(arm, base)
        for name, other in configs.items():
            if other == config:
                raise UserError(f"the arms {name} and {arm.name} have the same settings: leave one of them out")
        configs[arm.name] = config
    return configs


def option_text(name: str, value: Any) -> list[str]:
    """A setting as options of `paw-fast train`.

    >>> option_text("model.trust_remote_code", True), option_text("paw.tau", 0.5)
    (['--model.trust-remote-code'], ['--paw.tau', '0.5'])
    """
    if isinstance(value, bool) and not value:
        table, dot, key = name.rpartition(".")
        return [f"--{flag(f'{table}{dot}no_{key}')}"]
    if isinstance(value, bool):
        return [f"--{flag(name)}"]
    return [f"--{flag(name)}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
