"""`paw-fast panel create | verify | list`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from paw_fast.config.ranges import Range
from paw_fast.errors import UserError
from paw_fast.runs import console, stop_signals


@dataclass(frozen=True)
class CreateOptions:
    """Writes a panel: a named list of tasks with a hash of what each contains, for `paw-fast eval --panel`.

    --env.NAME VALUE changes a setting of the environment, such as --env.data FOLDER."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the panel."""
    env: Annotated[str | None, tyro.conf.arg(name="env")] = None
    """The environment; by default that of the preset."""
    preset: str = "tiny"
    """Recipe or TOML file with the settings of the environment."""
    split: str = "unseen"
    """Split of the environment."""
    tasks: Annotated[int | None, Range(1, 1 << 24)] = None
    """Number of tasks, those that `paw-fast eval` would take; by default the preset's number of evaluation tasks."""
    out: Path | None = None
    """The file to write; by default NAME.json in the current folder."""


@dataclass(frozen=True)
class VerifyOptions:
    """Checks that the tasks of a panel are here and contain what is listed; names those that differ.

    --env.NAME VALUE says where the data is, such as --env.data FOLDER."""

    panel: Annotated[str, tyro.conf.Positional]
    """A panel's file, or the name of one that comes with the package."""


OPTIONS: dict[str, type] = {"create": CreateOptions, "verify": VerifyOptions}
USAGE = """usage: paw-fast panel COMMAND [OPTIONS]

  create    write a named list of tasks, with a hash of what each contains
  verify    check that the tasks of a panel are here as listed
  list      list the panels that come with the package

paw-fast panel COMMAND --help tells the options of a command."""
SHOWN = 20
"""Tasks that differ and are shown; the others are counted."""


def run(options: CreateOptions | VerifyOptions, env_settings: Sequence[str] = ()) -> int:
    """Runs the command; returns the exit status. Raises `UserError`."""
    return _create(options, env_settings) if isinstance(options, CreateOptions) else _verify(options, env_settings)


def list_panels() -> int:
    """Prints the panels that come with the package."""
    from paw_fast.evaluation.panel import read_panel, shipped_panels

    for name in shipped_panels():
        panel = read_panel(name)
        print(f"{name:16} {len(panel.tasks):4} {panel.split} tasks of {panel.env}, {panel.hash}")
    return 0


def _config(command: str, preset: str, name: str | None, env_settings: Sequence[str]) -> Any:
    """The settings of a run whose environment is asked for its tasks."""
    from paw_fast.cli.options import parse
    from paw_fast.config import TrainConfig, load_preset

    config = load_preset(preset, name)
    return parse(TrainConfig, env_settings, command, config) if env_settings else config


def _create(options: CreateOptions, env_settings: Sequence[str]) -> int:
    from paw_fast.envs import make_env
    from paw_fast.evaluation.panel import check_name, make_panel
    from paw_fast.evaluation.success import eval_tasks
    from paw_fast.runs.atomic_files import user_errors, write_text

    check_name(options.name)
    path = options.out or Path(f"{options.name}.json")
    if path.exists():
        raise UserError(f"{path} is there already: choose another --out, or remove it")
    config = _config("panel create", options.preset, options.env, env_settings)
    env = make_env(config.env)
    env.while_waiting(stop_signals.check)
    try:
        tasks = eval_tasks(env.tasks(options.split), options.tasks or config.eval_tasks)
        panel = make_panel(options.name, config.env, env, options.split, tasks)
    finally:
        env.close()
    with user_errors("write the panel", path):
        write_text(path, panel.to_json())
    print(f"{path}: {len(panel.tasks)} {panel.split} tasks of {panel.env}, hash {panel.hash}")
    return 0


def _verify(options: VerifyOptions, env_settings: Sequence[str]) -> int:
    import dataclasses

    from paw_fast import envs
    from paw_fast.config import TrainConfig
    from paw_fast.envs import make_env
    from paw_fast.evaluation.panel import changed_settings, compare, describe_differences, read_panel, with_panel

    panel = read_panel(options.panel)
    own = with_panel(envs.find(panel.env).make_config(), panel)
    config = dataclasses.replace(TrainConfig(), env=own)
    if env_settings:
        from paw_fast.cli.options import parse

        config = parse(TrainConfig, env_settings, "panel verify", config)
        if changed := changed_settings(own, config.env, panel):
            raise UserError(f"--env.{changed[0].replace('_', '-')}: it belongs to the panel {panel.name}; leave it out")
    env = make_env(config.env)
    env.while_waiting(stop_signals.check)
    try:
        _, differences = compare(panel, env)
    finally:
        env.close()
    if differences:
        for one in differences[:SHOWN]:
            console.say(f"{one.task.id}: {one.why}")
        if len(differences) > SHOWN:
            console.say(f"and {len(differences) - SHOWN} more")
        raise UserError(describe_differences(panel, config.env, differences))
    print(f"{panel.name}: all {len(panel.tasks)} {panel.split} tasks of {panel.env} are as listed, hash {panel.hash}")
    return 0
