"""Runs `paw-fast compare`: arms times seeds, one training run each, and a report that says how the arms differ."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from paw_fast.cli.option_table import HELP, PROGRAM
from paw_fast.cli.options import parse, take
from paw_fast.compare.arms import arm_configs, built_in, find_arms
from paw_fast.compare.plan import Plan, default_folder, make_plan, write_plan
from paw_fast.config import TrainConfig
from paw_fast.config.ranges import LARGEST_SEED, Range
from paw_fast.errors import UserError
from paw_fast.runs import console, stop_signals
from paw_fast.runs import run_dir as runs

Resolve = Callable[[list[str]], tuple[TrainConfig, str]]
"""Makes the settings of a run from options of train, and what is to be said of its preset."""


@dataclass(frozen=True)
class CompareOptions:
    """Trains several arms with several seeds each, and reports how they differ. Takes all options of `paw-fast train`
    too (such as --env, --preset, --steps), which hold for every arm. The same command continues a comparison that was
    stopped; --seeds and --arms may grow."""

    arms: str = "rl,paw"
    """The arms, with commas between: built-in ones (see below), and TOML files with tables [arms.NAME] of settings."""
    seeds: str = "5"
    """How many seeds (5 means 0 to 4), or which: `10,11,12` or `10-14`."""
    out: Path | None = None
    """The folder of the comparison; the default is runs/compare-<environment>-<hash of the settings of the arms>."""
    jobs: Annotated[int, Range(1, 1 << 10)] = 1
    """Number of runs at a time. CPU cores are divided among them."""
    warm_starts: Literal["per-seed", "shared"] = "per-seed"
    """With `--model tiny`: each seed has a warm start of its own, which its arms share, or all runs have the same."""
    effect: Annotated[float, Range(0, 100, open_low=True)] = 5.0
    """The difference in success, in percentage points, for which the report computes how many seeds are needed."""


NOT_TAKEN = {
    "seed": "--seeds says which seeds are trained", "run-dir": "each run has its own folder below --out",
    "output-dir": "each run has its own folder below --out", "resume": "the same command continues a comparison",
    "push-to-hub": "upload one of the runs with paw-fast push", "print-config": "the settings are in OUT/settings",
}  # fmt: skip


def compare(args: list[str], quiet_libraries: Callable[[], None], resolve: Resolve) -> int:
    """Runs the command; returns the exit status: 0, 2 if a run failed, or that of a stop signal."""
    if not set(HELP).isdisjoint(args):
        return _help([arg for arg in args if arg not in HELP], resolve)
    command = f"{PROGRAM} compare {shlex.join(args)}".strip()
    options, rest = take_options(args)
    for name, why in NOT_TAKEN.items():
        if any(arg.partition("=")[0].replace("_", "-") == f"--{name}" for arg in rest):
            raise UserError(f"--{name} is no option of {PROGRAM} compare: {why}")
    arms, seeds = find_arms([one for one in options.arms.split(",") if one]), read_seeds(options.seeds)
    base, why = resolve(rest)
    configs = arm_configs(arms, base)
    out = options.out or default_folder(arms, configs, options.warm_starts)
    plan = make_plan(out, arms, seeds, configs, options.warm_starts, options.jobs)
    quiet_libraries()
    from paw_fast.models.hub import check_model
    from paw_fast.rollout.requirements import check_parts

    for config in configs.values():
        check_parts(config)
    check_model(base.model.path)
    if why:
        console.say(why)
    with stop_signals.handled(console.say, "the runs save first"):
        return _run(plan, options, command)


def _run(plan: Plan, options: CompareOptions, command: str) -> int:
    from paw_fast.compare.report import write_reports
    from paw_fast.compare.schedule import Scheduler

    with locked(plan.out):
        write_plan(plan, command)
        shown = ", ".join(arm.name for arm in plan.arms)
        console.say(f"comparing {shown} with {len(plan.seeds)} seeds in {plan.out}, {options.jobs} at a time")
        scheduler = Scheduler(plan, options.jobs)
        try:
            failed = scheduler.run()
        except stop_signals.Interrupted as stop:
            console.say(f"stopped: the runs are saved; go on with the same command: {command}")
            return stop.status
        sentences, report = write_reports(plan, options.effect / 100, command)
    for line in sentences:
        console.say(line)
    console.say(f"report: {report}")
    for job in failed:
        console.say(f"failed: {job.run.arm}, seed {job.run.seed}: {job.why} (see {job.run.log})")
    if failed:
        console.say(f"the report lacks {len(failed)} runs; try them again with the same command: {command}")
    return 2 if failed else 0


class locked:
    """Context manager that locks the folder of a comparison, so that one process works in it."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> None:
        try:
            runs.lock(self.out)
        except UserError as error:
            text = str(error).replace(f"continue with --resume {self.out}", "give the command again")
            raise UserError(text) from None

    def __exit__(self, *error: object) -> None:
        runs.unlock(self.out)


def take_options(args: Sequence[str]) -> tuple[CompareOptions, list[str]]:
    """The command's own options, and the rest, which are train's. Raises `UserError`."""
    rest, own = _join_seeds(args), []
    for f in fields(CompareOptions):
        name = f.name.replace("_", "-")
        value = take(rest, name)
        own += [] if value is None else [f"--{name}={value}"]
    return parse(CompareOptions, own, "compare"), rest


def _join_seeds(args: Sequence[str]) -> list[str]:
    """The arguments with `--seeds 1 2 3`, as train takes it, written as `--seeds 1,2,3`.

    >>> _join_seeds(["--seeds", "1", "2", "--env", "webshop"])
    ['--seeds', '1,2', '--env', 'webshop']
    """
    joined, after = [], False
    for arg in args:
        if after and not arg.startswith("-") and joined[-1] != "--seeds":
            joined[-1] += f",{arg}"
            continue
        after = arg == "--seeds" or (after and joined[-1] == "--seeds")
        joined.append(arg)
    return joined


def read_seeds(text: str) -> list[int]:
    """The seeds of `--seeds`: a number of them, a list, or a range. Raises `UserError`.

    >>> read_seeds("3"), read_seeds("7,9"), read_seeds("10-12")
    ([0, 1, 2], [7, 9], [10, 11, 12])
    """
    if re.fullmatch(r"\d{1,4}", text) and int(text) > 0:
        return list(range(int(text)))
    seeds: list[int] = []
    for part in [""] if text.isdecimal() else filter(None, text.split(",")):
        match = re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= LARGEST_SEED or last - first >= 10_000:
            break
        seeds += range(first, last + 1)
    else:
        if seeds and len(set(seeds)) == len(seeds):
            return seeds
    raise UserError(
        f"--seeds {text}: expected how many (5 means 0 to 4), or which, each once and at most {LARGEST_SEED}: 10,11,12 "
        "or 10-14"
    )


def _help(args: list[str], resolve: Resolve) -> int:
    """Prints the help with the arms. Other arguments are checked, as in the help of train."""
    if args:
        options, rest = take_options(args)
        find_arms([name for name in options.arms.split(",") if not name.endswith(".toml")] or ["rl"])
        read_seeds(options.seeds)
        resolve(rest)
    try:
        parse(CompareOptions, ["--help"], "compare")
    except SystemExit:
        width = max(map(len, built_in()))
        print("built-in arms:")
        for name, arm in built_in().items():
            print(f"  {name:{width}}  {arm.about}")
    return 0
