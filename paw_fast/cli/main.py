"""Runs the command line: `paw-fast train`, `eval`, `play`, `serve-env` and the others of `COMMANDS`.

Heavy packages are imported inside the commands, so that help and errors appear at once.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paw_fast import __version__, envs
from paw_fast.cli import help, ranks, seeds
from paw_fast.cli.eval_options import EvalOptions, take_env_settings
from paw_fast.cli.option_table import HELP, PROGRAM
from paw_fast.cli.options import parse, take, take_switch, unused_tables
from paw_fast.cli.play import PlayRunOptions, names_a_run
from paw_fast.cli.settings import base_config
from paw_fast.cli.surroundings import check_surroundings
from paw_fast.config import (
    EnvConfig,
    TrainConfig,
    changes_on_resume,
    recipes,
    to_toml,
    validate,
    with_absolute_paths,
    with_chat_date,
)
from paw_fast.config.ranges import Range
from paw_fast.config.renames import option
from paw_fast.errors import UserError
from paw_fast.runs import stop_signals


@dataclass(frozen=True)
class PlayOptions:
    """A person plays an episode in the terminal. `paw-fast play RUN` lets the trained policy play."""

    env: EnvConfig
    split: str = "unseen"
    """The set of tasks: `train`, `unseen`, or another split of the environment."""
    task: Annotated[int, Range(0, 1 << 30)] = 0
    """Number of the task in the split."""
    game: Path | None = None
    """A file that holds one task, instead of a number (ALFWorld: game.tw-pddl)."""


@dataclass(frozen=True)
class DoctorOptions:
    """What is installed, which kernels can run, what is missing and how to fix it."""

    json: bool = False
    """Print one JSON object."""


RUN_OPTIONS = ("--preset", "--config", "--resume", "--print-config", "--seeds")
"""Options of train that are no settings."""


def _train(args: list[str]) -> int:
    if not set(HELP).isdisjoint(args):
        return _train_help(args)
    from paw_fast.runs import console

    if ranks.is_follower():
        return 0 if "--print-config" in args else ranks.follow(_quiet_libraries)
    with stop_signals.handled(console.say):  # before anything is built
        return _train_command(args)


def _train_help(args: list[str]) -> int:
    """Prints the help with the defaults of the run that the other options would start."""
    at = next(i for i, arg in enumerate(args) if arg in HELP)
    topic = args[at + 1] if at + 1 < len(args) and not args[at + 1].startswith("-") else None
    args = [arg for i, arg in enumerate(args) if arg not in HELP and (topic is None or i != at + 1)]
    take_switch(args, "print-config")
    seeds.take_seeds(args)
    if (run := take(args, "resume")) is not None:
        from paw_fast.runs import run_dir as runs

        config, preset = runs.load_config(runs.find_run_dir(Path(run))), f"run {run}"
    else:
        named, file = take(args, "preset"), take(args, "config")
        config, why = base_config(args, named, Path(file) if file else None)
        chosen = why.partition(" (--preset")[0].replace(": ", " (") + ")" if why else f"preset {named}" if named else ""
        preset = " and ".join(one for one in (chosen, f"file {file}" if file else "") if one)
    config = parse(TrainConfig, args, "train", config, RUN_OPTIONS)
    print(help.train_help(config, preset, topic, unused_tables(config)), end="")
    return 0


def _resolve(args: list[str]) -> tuple[TrainConfig, str]:
    """The settings of the run that the options describe, and what is to be said of its preset."""
    preset, file = take(args, "preset"), take(args, "config")
    base, why = base_config(args, preset, Path(file) if file else None)
    config = parse(TrainConfig, args, "train", base, RUN_OPTIONS)
    validate(config)
    return with_chat_date(with_absolute_paths(config)), why


def _train_command(args: list[str]) -> int:
    given = list(args)
    only_print = take_switch(args, "print-config")
    resume = None if seeds.is_given(args) else take(args, "resume")
    if resume is not None:
        return _resume(Path(resume), args, only_print, given)
    many = seeds.take_seeds(args)
    config, why = _resolve(args)
    if only_print:
        print(f"# {why}\n{to_toml(config)}" if why else to_toml(config), end="")
        return 0
    from paw_fast.runs import console

    _quiet_libraries()
    from paw_fast.models.hub import check_model
    from paw_fast.rollout.requirements import check_parts

    check_parts(config)
    check_model(config.model.path)
    if why:
        console.say(why)
    from paw_fast.cli.start import start_run

    def start(config: TrainConfig) -> int:
        return start_run(config)[0] if many is None else seeds.train_seeds(config, many, start_run)

    return ranks.run(config, given, start)


def _resume(path: Path, args: list[str], only_print: bool, given_args: list[str]) -> int:
    from paw_fast.runs import console
    from paw_fast.runs import run_dir as runs

    _quiet_libraries()
    from paw_fast.runs.resume import check_unedited

    run_dir = runs.find_run_dir(path)
    begun = runs.load_config(run_dir)
    check_unedited(run_dir, begun)
    consent = tuple(option(f"env.{field}") for field in begun.env.CONSENT_FIELDS)
    given = any(arg.replace("_", "-").startswith(consent) for arg in args)
    first = begun.env.CONSENT_FIELDS[:1]
    runs.check_consent(begun.env, given, " ".join(f"{option(f'env.{one}')} {getattr(begun.env, one)}" for one in first))
    for name in ("preset", "config"):
        if take(args, name) is not None:
            raise UserError(f"--{name} and --resume: a run is resumed with its own settings; leave --{name} out")
    if (algo := take(list(args), "algo")) not in (None, begun.algo.name):
        raise UserError(f"--algo {algo}: {run_dir} was begun with {begun.algo.name}; begin a new run without --resume")
    config = parse(TrainConfig, args, "train --resume RUN", begun)
    if config.run_dir != begun.run_dir:
        raise UserError(f"--run-dir {config.run_dir}: a run goes on in its own folder, {run_dir}; leave it out")
    config = with_chat_date(with_absolute_paths(config))
    if only_print:
        changes_on_resume(run_dir, begun, config)
        validate(config)
        print(to_toml(config), end="")
        return 0
    from paw_fast.cli.start import resume_run

    def start(config: TrainConfig) -> int:
        status, missing = resume_run(run_dir, begun, config)
        if missing:
            console.say(f"{run_dir} has done its steps; added what was missing: {', '.join(missing)}")
        elif missing is not None:
            raise UserError(f"{run_dir} has done its {config.steps} steps: nothing to resume; give more with --steps")
        return status

    return ranks.run(config, given_args, start)


def _eval(args: list[str]) -> int:
    changes = take_env_settings(args)
    options = parse(EvalOptions, args, "eval")
    from paw_fast.runs import console

    with stop_signals.handled(console.say, "leaving the evaluation"):
        _quiet_libraries()
        from paw_fast.cli.eval import run_eval

        try:
            return run_eval(options, changes)
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


def _compare(args: list[str]) -> int:
    from paw_fast.cli.compare import compare

    return compare(args, _quiet_libraries, _resolve)


def _push(args: list[str]) -> int:
    from paw_fast.cli.push import push

    return push(args, _quiet_libraries)


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


def _plan(args: list[str]) -> int:
    from paw_fast.cli.plan import run_plan

    return run_plan(args)


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


def _serve_env(args: list[str]) -> int:
    from paw_fast.cli.serve_env import serve_env

    return serve_env(args)


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


def _panel(args: list[str]) -> int:
    from paw_fast.cli import panel

    if not args or args[0] in ("-h", "--help"):
        print(panel.USAGE)
        return 0 if args else 2
    if args[0] not in (*panel.OPTIONS, "list"):
        near = difflib.get_close_matches(args[0], (*panel.OPTIONS, "list"), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(panel.OPTIONS)} and list"
        raise UserError(f"unknown command 'panel {args[0]}'; {hint}")
    if args[0] == "list":
        if len(args) > 1:
            raise UserError(f"{PROGRAM} panel list takes no options, got {' '.join(args[1:])}")
        return panel.list_panels()
    rest = args[1:]
    changes = take_env_settings(rest)
    return panel.run(parse(panel.OPTIONS[args[0]], rest, f"panel {args[0]}"), changes)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (_train, "train an agent: rollouts, GRPO and the world-model loss"),
    "eval": (_eval, "success rate of a checkpoint on tasks of a split"),
    "panel": (_panel, "named lists of tasks with hashes, for evaluations that are of the same tasks"),
    "play": (_play, "watch a trained policy play (play RUN), or play an episode yourself"),
    "serve-env": (_serve_env, "let other programs play an environment, with OpenEnv's protocol"),
    "retriever": (_retriever, "index passages for search, or serve them to other programs"),
    "report": (_report, "results and curves of one or several runs as one HTML file"),
    "compare": (_compare, "train several arms with several seeds each, and report how they differ"),
    "push": (_push, "upload the model of a run to the Hugging Face Hub, with a model card"),
    "doctor": (_doctor, "what is installed, which kernels run, how to fix what is missing"),
    "plan": (_plan, "memory and time of a training run on a machine, and what makes it fit"),
    "recipes": (_recipes, "list the presets"),
}


def _usage() -> str:
    lines = [f"usage: {PROGRAM} COMMAND [OPTIONS]", ""]
    lines += [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", f"{PROGRAM} COMMAND --help tells the options of a command; {PROGRAM} --version the version."]
    return "\n".join(lines)


def _quiet_libraries() -> None:
    """Progress bars and advice of the libraries below would break into our own."""
    verbosity = os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports a home folder that cannot be written
    from transformers.utils import logging as transformers_logging

    if verbosity == "error":  # also where transformers was imported before
        transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


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
    if argv[0] != "recipes":
        check_surroundings(argv)
    return COMMANDS[argv[0]][0](list(argv[1:]))


def main() -> None:
    """Entry point of the `paw-fast` program."""
    from paw_fast.runs.atomic_files import exit_code_of

    for stream in (sys.stdout, sys.stderr):  # in a locale without a letter of a task or a name, it is escaped
        with suppress(AttributeError, ValueError):  # replaced or closed by the caller
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(exit_code_of(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
