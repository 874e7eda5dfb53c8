"""The command line: `paw-fast train | eval | play | retriever | report | doctor | recipes`.

Heavy packages are imported inside the commands, so that help and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from paw_fast import __version__
from paw_fast.config import TrainConfig, load_preset, load_toml, recipes, validate, with_chat_date
from paw_fast.env_config import EnvConfig, env_config, with_full_paths
from paw_fast.types import UserError

PROGRAM = "paw-fast"


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
    allow_reference_engine: bool = False
    """ALFWorld: let the reference engine, which runs Python expressions of game files, play what the run's config or
    the games ask it for."""
    json: bool = False
    """Print one JSON object."""


def _play_env(name: str) -> EnvConfig:
    """An environment for a person: larger households than a small model is given, pages with a line for each button."""
    changes = {"alfworld": {"size": "medium"}, "webshop": {"mode": "text_rich"}}
    return env_config(name, **changes.get(name, {}))


@dataclass(frozen=True)
class PlayOptions:
    """A person plays an episode in the terminal."""

    env: EnvConfig = dataclasses.field(default_factory=lambda: _play_env("alfworld"))
    split: str = "unseen"
    """Which tasks."""
    task: int = 0
    """Number of the task in the split."""
    game: Path | None = None
    """ALFWorld: a game.tw-pddl file, instead of a number."""


@dataclass(frozen=True)
class ReportOptions:
    """Writes report.html with the curves of one run, or of several laid over each other."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories."""
    out: Path | None = None
    """The file to write; by default report.html in the run, or here where there are several."""


@dataclass(frozen=True)
class DoctorOptions:
    """What is installed, which kernels can run, what is missing and how to mend it."""

    json: bool = False
    """Print one JSON object."""


def _flags(cls: type, prefix: str = "") -> set[str]:
    """Every option name of a config dataclass, as tyro spells them."""
    import typing

    hints = typing.get_type_hints(cls, include_extras=True)
    names: set[str] = set()
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint):
            names |= _flags(typing.cast(type, hint), f"{prefix}{f.name}.")
            continue
        marks = getattr(hint, "__metadata__", ())
        own = next((m for m in marks if getattr(m, "name", None)), None)
        name = own.name if own is not None else prefix + f.name
        names.add("--" + name.replace("_", "-"))
        if hint is bool:
            names.add("--" + (prefix + "no-" + f.name).replace("_", "-"))
    return names


def _parse(cls: type, args: Sequence[str], command: str, default: Any = None, extra: Sequence[str] = ()) -> Any:
    """Parses with tyro; an unknown option is one line that names the nearest one."""
    known = _flags(cls) | {"-h", "--help", *extra}
    for arg in args:
        flag = arg.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; see {PROGRAM} {command} --help"
            raise UserError(f"unknown option {arg.split('=')[0]}{hint}")
    try:
        with _one_line_errors():
            if default is None:
                return tyro.cli(cls, args=list(args), prog=f"{PROGRAM} {command}")
            return tyro.cli(cls, args=list(args), prog=f"{PROGRAM} {command}", default=default)
    except SystemExit as e:
        if e.code in (0, None):
            raise
        raise UserError(_last_error(cls, args, command)) from None


@contextlib.contextmanager
def _one_line_errors():
    """Keeps tyro's boxed error messages off the screen; the one-line form is made from them."""
    import io

    buffer = io.StringIO()
    _captured.clear()
    with contextlib.redirect_stderr(buffer):
        try:
            yield
        finally:
            _captured.append(buffer.getvalue())


_captured: list[str] = []


def _last_error(cls: type, args: Sequence[str], command: str) -> str:
    lines = [line.strip("│╭╮╰╯─ ").strip() for line in _captured[-1].splitlines()] if _captured else []
    text = " ".join(line for line in lines if line and not line.startswith("For full helptext"))
    return f"{text or 'cannot read the options'} (see {PROGRAM} {command} --help)"


def _take(args: list[str], name: str) -> str | None:
    """Takes `--name value` or `--name=value` out of the arguments."""
    for i, arg in enumerate(args):
        if arg == f"--{name}":
            if i + 1 >= len(args):
                raise UserError(f"--{name} needs a value")
            value = args[i + 1]
            del args[i : i + 2]
            return value
        if arg.startswith(f"--{name}="):
            del args[i]
            return arg.split("=", 1)[1]
    return None


def _env_name(args: Sequence[str]) -> str | None:
    """The environment that the arguments name."""
    return _take(list(args), "env")


def _default_preset(args: Sequence[str]) -> tuple[str, str]:
    """The preset where none is named, and why."""
    import torch

    from paw_fast.pretrained import SMOLLM2

    joined = " ".join(args)
    if f"--model {SMOLLM2}" in joined or f"--model={SMOLLM2}" in joined:
        return "smollm2", "it suits that model"
    if torch.cuda.is_available():
        return "qwen2.5-1.5b", f"{torch.cuda.get_device_name()} was found"
    return "tiny", "no CUDA device was found"


def _train(args: list[str]) -> int:
    resume = _take(args, "resume")
    if resume is not None:
        return _resume(Path(resume), args)
    wants_help = "-h" in args or "--help" in args
    preset, file = _take(args, "preset"), _take(args, "config")
    why = ""
    if preset is None and file is None:
        preset, why = ("tiny", "") if wants_help else _default_preset(args)
    name = _env_name(args)
    base = load_preset(preset, name) if preset else TrainConfig(env=env_config(name or "alfworld"))
    base = load_toml(Path(file), base) if file else base
    if wants_help:
        print(
            f"usage: {PROGRAM} train [--preset NAME|FILE] [--config FILE] [--resume RUN] [OPTIONS]\n\n"
            "  --preset   a recipe by name (see `paw-fast recipes`) or a TOML file; else chosen by the hardware\n"
            "  --config   a TOML file laid over the preset (a run's config.toml repeats the run)\n"
            "  --resume   go on with a run directory from its newest checkpoint\n"
        )
    config = _parse(TrainConfig, args, "train", base, ("--preset", "--config", "--resume"))
    validate(config)
    config = with_chat_date(dataclasses.replace(config, env=with_full_paths(config.env)))
    from paw_fast import console

    if why:
        console.say(f"preset {preset}: {why} (--preset takes another; see `paw-fast recipes`)")
    from paw_fast import runs

    _quiet_libraries()
    from paw_fast.train import train

    folder = config.run_dir
    before = list(folder.iterdir()) if folder is not None and folder.is_dir() else None
    run_dir = runs.create_run(config)
    console.say(f"run directory {run_dir}")
    try:
        return train(config, run_dir)
    except UserError:
        runs.discard_unused(run_dir, before)
        raise


def _resume(path: Path, args: list[str]) -> int:
    from paw_fast import console, runs

    _quiet_libraries()
    from paw_fast.train import check_resumable, train

    run_dir = runs.run_of(path)
    begun = runs.config_of(run_dir)
    said = any(arg.replace("_", "-").startswith(("--env.engine", "--env.allow-reference-engine")) for arg in args)
    runs.check_reference_engine(begun.env, said, "--env.engine textworld")
    config = _parse(TrainConfig, args, "train --resume RUN", begun)
    if config.run_dir != begun.run_dir:
        raise UserError(f"--run-dir {config.run_dir}: a run goes on in its own folder, {run_dir}; leave it out")
    validate(config)
    check_resumable(run_dir, config)
    config = with_chat_date(dataclasses.replace(config, env=with_full_paths(config.env)))
    console.say(f"going on with {run_dir}")
    return train(config, run_dir, resume=True)


def _eval(args: list[str]) -> int:
    options = _parse(EvalOptions, args, "eval")
    _quiet_libraries()
    from paw_fast.eval_command import run_eval

    return run_eval(options)


def _play(args: list[str]) -> int:
    options = _parse(PlayOptions, args, "play", PlayOptions(env=_play_env(_env_name(args) or "alfworld")))
    if options.game is not None and options.env.name != "alfworld":
        raise UserError(f"--game names a game of alfworld, and --env is {options.env.name}: take --task")
    from paw_fast.envs.play import play
    from paw_fast.rollout.build import make_env
    from paw_fast.types import Task

    env = make_env(options.env)
    try:
        if options.game is not None:
            task = Task.from_file(options.game)
        else:
            tasks = env.tasks(options.split)
            if not 0 <= options.task < len(tasks):
                raise UserError(f"--task {options.task}: the split {options.split} has tasks 0 to {len(tasks) - 1}")
            task = tasks[options.task]
        play(env, task)
    finally:
        env.close()
    return 0


def _report(args: list[str]) -> int:
    options = _parse(ReportOptions, args, "report")
    if not options.runs:
        raise UserError(f"name one or more run directories: {PROGRAM} report RUN...")
    from paw_fast.report import write_report

    print(write_report(options.runs, options.out))
    return 0


def _doctor(args: list[str]) -> int:
    options = _parse(DoctorOptions, args, "doctor")
    _quiet_libraries()
    from paw_fast import doctor

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
    from paw_fast.retrieval import command

    if not args or args[0] in ("-h", "--help"):
        print(command.USAGE)
        return 0 if args else 2
    if args[0] not in command.OPTIONS:
        near = difflib.get_close_matches(args[0], command.OPTIONS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(command.OPTIONS)}"
        raise UserError(f"unknown command 'retriever {args[0]}'; {hint}")
    return command.run(_parse(command.OPTIONS[args[0]], args[1:], f"retriever {args[0]}"))


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (_train, "train an agent: rollouts, GRPO and the world-model loss"),
    "eval": (_eval, "success rate of a checkpoint on tasks of a split"),
    "play": (_play, "play an episode yourself, in the terminal"),
    "retriever": (_retriever, "index passages for search, or serve them to other programs"),
    "report": (_report, "curves of one or several runs as one HTML file"),
    "doctor": (_doctor, "what is installed, which kernels run, how to mend what is missing"),
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
    from paw_fast.files import exit_code_of

    sys.exit(exit_code_of(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
