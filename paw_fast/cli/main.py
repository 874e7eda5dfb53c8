"""Runs the command line: `paw-fast train | eval | play | retriever | report | doctor | recipes`.

Heavy packages are imported inside the commands, so that help and errors appear at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from paw_fast import __version__, envs
from paw_fast.cli.options import PROGRAM, parse, take
from paw_fast.cli.play import PlayRunOptions, names_a_run
from paw_fast.config import (
    EnvConfig,
    TrainConfig,
    changes_on_resume,
    env_config,
    load_preset,
    load_toml,
    read_toml,
    recipes,
    validate,
    with_algo,
    with_chat_date,
    with_full_paths,
)
from paw_fast.config.renames import option
from paw_fast.errors import UserError
from paw_fast.runs import stop_signals


@dataclass(frozen=True)
class EvalOptions:
    """Success rate of a checkpoint, with a 95 % confidence interval, overall and for each task type."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run directory (its newest checkpoint), a checkpoint, or a Hugging Face model folder."""
    env: Annotated[str | None, tyro.conf.arg(name="env")] = None
    """Which environment; by default that of the run, or ALFWorld."""
    split: str = "unseen"
    """`train`, `unseen`, or another split of the environment (ALFWorld: `valid_seen`, `valid_unseen`)."""
    tasks: int = 100
    """How many tasks, drawn from the split once and for all."""
    seed: int = 0
    """Of the sampling; the same seed and checkpoint give the same result."""
    temperature: float | None = None
    """By default the run's evaluation temperature."""
    preset: str | None = None
    """Settings for a model folder that belongs to no run."""
    world_model: bool = False
    """Also measure how well the episodes' next observations are predicted, after the played and after other actions."""
    transitions: int = 256
    """Transitions of those episodes that --world-model draws."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    trust_env_code: bool = False
    """Run code from the environment's data files (ALFWorld: the reference engine evaluates Python expressions in game
    files) where the run's config or the data ask for it."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class PlayOptions:
    """A person plays an episode in the terminal. `paw-fast play RUN` lets the trained policy play."""

    env: EnvConfig
    split: str = "unseen"
    """Which tasks."""
    task: int = 0
    """Number of the task in the split."""
    game: Path | None = None
    """A file that holds one task, instead of a number (ALFWorld: game.tw-pddl)."""


@dataclass(frozen=True)
class DoctorOptions:
    """What is installed, which kernels can run, what is missing and how to fix it."""

    json: bool = False
    """Print one JSON object."""


def _default_preset(args: Sequence[str], over: Mapping[str, Any]) -> tuple[str, str]:
    """The preset where none is named, and why. `over` is what a file lays over it."""
    import torch

    from paw_fast.models.smollm2 import SMOLLM2

    joined = " ".join(args)
    model = over.get("model")
    of_file = isinstance(model, dict) and model.get("path") == SMOLLM2
    if of_file or f"--model {SMOLLM2}" in joined or f"--model={SMOLLM2}" in joined:
        return "smollm2", "it suits that model"
    if torch.cuda.is_available():
        return "qwen2.5-1.5b", f"{torch.cuda.get_device_name()} was found"
    return "tiny", "no CUDA device was found"


def _base_config(
    args: Sequence[str], preset: str | None, file: Path | None, wants_help: bool
) -> tuple[TrainConfig, str]:
    """The settings below the options, and what is to be said of the preset that was chosen for the user."""
    env, algo = take(list(args), "env"), take(list(args), "algo")
    over = read_toml(file) if file else {}
    of_file = over.get("env", {}).get("name") if isinstance(over.get("env"), dict) else None
    if env and of_file not in (None, env):
        raise UserError(f"--env {env}: {file} is for the environment {of_file}")
    name = env or (of_file if isinstance(of_file, str) else None)
    why = ""
    if preset is None and "base" not in over:
        preset, reason = ("tiny", "") if wants_help else _default_preset(args, over)
        why = f"preset {preset}: {reason} (--preset takes another; see `paw-fast recipes`)" if reason else ""
    plain = TrainConfig(env=env_config(name or "alfworld"))
    config = load_preset(preset, name) if preset else plain
    if file is not None:
        config = load_toml(file, config)
        if config == load_toml(file, plain):  # a run's config.toml leaves nothing to the preset
            why = ""
    return with_algo(config, algo) if algo else config, why


def _train(args: list[str]) -> int:
    if "-h" in args or "--help" in args:
        return _train_command(args)
    from paw_fast.runs import console

    with stop_signals.handled(console.say):  # before anything is built
        return _train_command(args)


def _train_command(args: list[str]) -> int:
    resume = take(args, "resume")
    if resume is not None:
        return _resume(Path(resume), args)
    wants_help = "-h" in args or "--help" in args
    preset, file = take(args, "preset"), take(args, "config")
    base, why = _base_config(args, preset, Path(file) if file else None, wants_help)
    if wants_help:
        print(
            f"usage: {PROGRAM} train [--preset NAME|FILE] [--config FILE] [--resume RUN] [OPTIONS]\n\n"
            "  --preset   a recipe by name (see `paw-fast recipes`) or a TOML file; else chosen by the hardware\n"
            "  --config   a TOML file laid over the preset (a run's config.toml repeats the run)\n"
            "  --resume   go on with a run directory from its newest checkpoint\n\n"
            "exit status: 0 done, 2 a mistake or a failure (one line says which), 130 stopped by Ctrl-C, 75 stopped\n"
            "by SIGTERM, SIGHUP or SIGUSR1. After 130 and 75 the run is saved: go on with --resume RUN.\n"
        )
    config = parse(TrainConfig, args, "train", base, ("--preset", "--config", "--resume"))
    validate(config)
    config = with_chat_date(dataclasses.replace(config, env=with_full_paths(config.env)))
    from paw_fast.runs import console

    if why:
        console.say(why)
    from paw_fast.runs import run_dir as runs

    _quiet_libraries()
    from paw_fast.trainer import train

    folder = config.run_dir
    before = list(folder.iterdir()) if folder is not None and folder.is_dir() else None
    run_dir = runs.create_run(config)
    console.say(f"run directory {run_dir}")
    try:
        return train(config, run_dir)
    except UserError:
        runs.discard_unused(run_dir, before)
        raise
    finally:
        runs.unlock(run_dir)


def _resume(path: Path, args: list[str]) -> int:
    from paw_fast.runs import console
    from paw_fast.runs import run_dir as runs

    _quiet_libraries()
    from paw_fast.runs.resume import is_finished, resume_point, write_missing
    from paw_fast.trainer import train

    run_dir = runs.find_run_dir(path)
    begun = runs.load_config(run_dir)
    consent = tuple(option(f"env.{field}") for field in begun.env.CONSENT_FIELDS)
    given = any(arg.replace("_", "-").startswith(consent) for arg in args)
    first = begun.env.CONSENT_FIELDS[:1]
    runs.check_consent(begun.env, given, " ".join(f"{option(f'env.{one}')} {getattr(begun.env, one)}" for one in first))
    if (algo := take(list(args), "algo")) not in (None, begun.algo.name):
        raise UserError(f"--algo {algo}: {run_dir} was begun with {begun.algo.name}; begin a new run without --resume")
    config = parse(TrainConfig, args, "train --resume RUN", begun)
    if config.run_dir != begun.run_dir:
        raise UserError(f"--run-dir {config.run_dir}: a run goes on in its own folder, {run_dir}; leave it out")
    config = with_chat_date(dataclasses.replace(config, env=with_full_paths(config.env)))
    changes = changes_on_resume(run_dir, begun, config)
    validate(config)
    runs.lock(run_dir)
    try:
        checkpoint = resume_point(run_dir)
        if checkpoint is not None and is_finished(checkpoint, config):
            if missing := write_missing(run_dir, checkpoint):
                console.say(f"{run_dir} has done its steps; {' and '.join(missing)} had not been written and is now")
                return 0
            raise UserError(f"{run_dir} has done its {config.steps} steps: nothing to resume; give more with --steps")
        console.say(f"going on with {run_dir}" + (f", changed: {', '.join(changes)}" if changes else ""))
        return train(config, run_dir, resume=True)
    finally:
        runs.unlock(run_dir)


def _eval(args: list[str]) -> int:
    options = parse(EvalOptions, args, "eval")
    from paw_fast.runs import console

    with stop_signals.handled(console.say, "leaving the evaluation"):
        _quiet_libraries()
        from paw_fast.cli.eval import run_eval

        try:
            return run_eval(options)
        except stop_signals.Interrupted as stop:
            console.say("stopped: an evaluation keeps nothing, begin it again")
            return stop.status


def _play(args: list[str]) -> int:
    if names_a_run(args):
        return _play_run(parse(PlayRunOptions, args, "play RUN"))
    spec = envs.find(take(list(args), "env") or "alfworld")
    options = parse(PlayOptions, args, "play", PlayOptions(env=spec.make_config(**spec.play)))
    if options.game is not None and spec.read_task is None:
        raise UserError(f"--game: tasks of {spec.name} have no files; choose one by its number with --task")
    from paw_fast.cli.play import play

    env = envs.make_env(options.env)
    try:
        if options.game is not None and spec.read_task is not None:
            task = spec.read_task(options.game)
        else:
            tasks = env.tasks(options.split)
            if not 0 <= options.task < len(tasks):
                raise UserError(f"--task {options.task}: the split {options.split} has tasks 0 to {len(tasks) - 1}")
            task = tasks[options.task]
        play(env, task)
    finally:
        env.close()
    return 0


def _play_run(options: PlayRunOptions) -> int:
    from paw_fast.runs import console

    with stop_signals.handled(console.say, "leaving the game"):
        _quiet_libraries()
        from paw_fast.cli.play_policy import play_run

        try:
            return play_run(options)
        except stop_signals.Interrupted as stop:
            return stop.status


def _report(args: list[str]) -> int:
    from paw_fast.cli.report import report

    return report(args, _quiet_libraries)


def _doctor(args: list[str]) -> int:
    options = parse(DoctorOptions, args, "doctor")
    _quiet_libraries()
    from paw_fast.cli import doctor

    info = doctor.collect()
    if options.json:
        print(json.dumps(info))
    else:
        from rich.console import Console

        doctor.render(Console(), info)
    return doctor.exit_status(info)


def _recipes(args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        print(f"usage: {PROGRAM} recipes\n\nLists the presets that `{PROGRAM} train --preset NAME` takes.")
        return 0
    if args:
        raise UserError(f"{PROGRAM} recipes takes no options, got {' '.join(args)}")
    from paw_fast.config import describe

    for name, path in recipes().items():
        print(f"{name:24} {describe(path)}")
    return 0


def _retriever(args: list[str]) -> int:
    from paw_fast.cli import retriever

    if not args or args[0] in ("-h", "--help"):
        print(retriever.USAGE)
        return 0 if args else 2
    if args[0] not in retriever.OPTIONS:
        near = difflib.get_close_matches(args[0], retriever.OPTIONS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(retriever.OPTIONS)}"
        raise UserError(f"unknown command 'retriever {args[0]}'; {hint}")
    return retriever.run(parse(retriever.OPTIONS[args[0]], args[1:], f"retriever {args[0]}"))


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (_train, "train an agent: rollouts, GRPO and the world-model loss"),
    "eval": (_eval, "success rate of a checkpoint on tasks of a split"),
    "play": (_play, "watch a trained policy play (play RUN), or play an episode yourself"),
    "retriever": (_retriever, "index passages for search, or serve them to other programs"),
    "report": (_report, "results and curves of one or several runs as one HTML file"),
    "doctor": (_doctor, "what is installed, which kernels run, how to fix what is missing"),
    "recipes": (_recipes, "list the presets"),
}


def _usage() -> str:
    lines = [f"usage: {PROGRAM} COMMAND [OPTIONS]", ""]
    lines += [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", f"{PROGRAM} COMMAND --help tells the options of a command; {PROGRAM} --version the version."]
    return "\n".join(lines)


def _quiet_libraries() -> None:
    """Progress bars and advice of the libraries below would break into our own."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()


def run(argv: Sequence[str]) -> int:
    """Runs one command line; mistakes raise `UserError`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"{PROGRAM} {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command '{argv[0]}'; {hint}")
    return COMMANDS[argv[0]][0](list(argv[1:]))


def main() -> None:
    """Entry point of the `paw-fast` program."""
    from paw_fast.runs.atomic_files import exit_code_of

    sys.exit(exit_code_of(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
