"""Defines the options of `paw-fast eval`. Imports no torch."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from paw_fast.config.choice import registered_configs
from paw_fast.config.ranges import SEED, TEMPERATURE, Range
from paw_fast.errors import UserError


@dataclass(frozen=True)
class EvalOptions:
    """Success rate of checkpoints, with a 95 % confidence interval, overall and for each task type.

    --env.NAME VALUE changes a setting of the environment, such as --env.max-steps 50."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """One or more run directories (their newest checkpoints), checkpoints, or Hugging Face model folders."""
    env: Annotated[str | None, tyro.conf.arg(name="env")] = None
    """The environment; by default that of the run, or ALFWorld for a model of no run."""
    split: str = "unseen"
    """`train`, `unseen`, or another split of the environment (ALFWorld: `valid_seen`, `valid_unseen`)."""
    tasks: Annotated[int, Range(1, 1 << 24)] = 100
    """Number of tasks, always the same ones of the split."""
    panel: str | None = None
    """Evaluate on the tasks of a panel (see `paw-fast panel`), in place of --split and --tasks: a file, or the name of
    one that comes with the package."""
    seed: Annotated[int, SEED] = 0
    """Seed of the sampling; the same seed and checkpoint give the same result."""
    temperature: Annotated[float | None, TEMPERATURE] = None
    """Sampling temperature; by default the evaluation temperature of the run."""
    preset: str | None = None
    """Recipe or TOML file with the settings for a model folder that belongs to no run."""
    best: bool = False
    """Of a run directory, evaluate the checkpoint with the highest success in the evaluations of the run."""
    device: str | None = None
    """Device of the model: `cpu`, `cuda` or `cuda:0`; by default as in the run."""
    slots: Annotated[int | None, Range(1, 1 << 20)] = None
    """Number of episodes that are played at the same time; by default as in the run."""
    world_model: bool = False
    """Also measure how well the episodes' next observations are predicted, after the played and after other actions."""
    transitions: Annotated[int, Range(1, 1 << 24)] = 256
    """Number of transitions of those episodes that --world-model measures."""
    eval_text: Path | None = None
    """A text file that is of no environment, whose loss is measured; by default the run's, or the page of prose that
    comes with the package."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    trust_env_code: bool = False
    """Run code from the environment's data files (ALFWorld: the reference engine evaluates Python expressions in game
    files) where the run's config or the data ask for it."""
    json: bool = False
    """Print one JSON object."""


def take_env_settings(args: list[str]) -> list[str]:
    """Takes the options `--env.NAME VALUE` out of the arguments and returns them.

    >>> args = ["runs/a", "--env.max-steps", "5", "--tasks", "9"]
    >>> take_env_settings(args), args
    (['--env.max-steps', '5'], ['runs/a', '--tasks', '9'])
    """
    taken, i = [], 0
    while i < len(args):
        flag = args[i].partition("=")[0]
        if not flag.startswith("--env."):
            i += 1
            continue
        taken.append(args[i])
        has_value = "=" in args[i] or flag.replace("_", "-") in _switches()
        del args[i]
        if not has_value:
            if i == len(args) or args[i].startswith("--"):
                raise UserError(f"{flag} needs a value")
            taken.append(args.pop(i))
    return taken


def _switches() -> set[str]:
    """The options of environments that take no value."""
    found = set()
    for _, config in registered_configs("environments"):
        hints = typing.get_type_hints(type(config))
        for field in dataclasses.fields(config):
            if hints[field.name] is bool:
                name = field.name.replace("_", "-")
                found |= {f"--env.{name}", f"--env.no-{name}"}
    return found
