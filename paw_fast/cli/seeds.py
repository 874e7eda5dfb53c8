"""Runs `paw-fast train --seeds 0 1 2`: the same settings with several seeds, one run after the other."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from paw_fast.config import TrainConfig
from paw_fast.config.ranges import LARGEST_SEED
from paw_fast.errors import UserError
from paw_fast.runs import console
from paw_fast.runs import run_dir as runs
from paw_fast.runs.statistics import mean_interval

Start = Callable[[TrainConfig], tuple[int, Path]]
"""Starts a run; returns its exit status and its folder. Raises `UserError`."""


def is_given(args: Sequence[str]) -> bool:
    """Whether `--seeds` is among the arguments."""
    return any(arg.partition("=")[0] == "--seeds" for arg in args)


def take_seeds(args: list[str]) -> list[int] | None:
    """Takes `--seeds 0 1 2` out of the arguments; None if it is not there.

    Raises `UserError` for a value that is not a seed, a seed that is given twice, and options that exclude it.

    >>> args = ["--seeds", "0", "3", "--steps", "5"]
    >>> take_seeds(args), args
    ([0, 3], ['--steps', '5'])
    """
    places = [i for i, arg in enumerate(args) if arg.partition("=")[0] == "--seeds"]
    if not places:
        return None
    if len(places) > 1:
        raise UserError(f"--seeds is given {len(places)} times")
    first = places[0]
    equals = args[first].partition("=")[2]
    end = first + 1
    while not equals and end < len(args) and not args[end].startswith("--"):
        end += 1
    texts = equals.replace(",", " ").split() if equals else [t for arg in args[first + 1 : end] for t in arg.split(",")]
    del args[first:end]
    for other in ("--seed", "--resume"):
        if any(arg.partition("=")[0] == other for arg in args):
            raise UserError(f"--seeds and {other} exclude each other: leave out one of them")
    if not texts:
        raise UserError("--seeds needs values, such as --seeds 0 1 2")
    for text in texts:
        if not text.isdecimal() or int(text) > LARGEST_SEED:
            raise UserError(f"--seeds {text}: expected whole numbers from 0 to {LARGEST_SEED}, such as --seeds 0 1 2")
    seeds = [int(text) for text in texts]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(texts)}: a seed is given twice")
    return seeds


def train_seeds(config: TrainConfig, seeds: Sequence[int], start: Start) -> int:
    """Trains once for each seed; returns the exit status: 0, 2 if a run failed, or that of a stop signal.

    A run that fails is reported, and the next one starts; a stop signal ends the sequence. With `config.run_dir` the
    runs are in its subfolders `s<seed>`.
    """
    if config.push_to_hub is not None:
        raise UserError(
            f"--push-to-hub {config.push_to_hub} and --seeds: the runs would overwrite each other's model; leave out "
            "--push-to-hub and upload one of them with paw-fast push RUN NAME"
        )
    done: list[Path] = []
    failed = 0
    for number, seed in enumerate(seeds):
        console.say(f"seed {seed}, run {number + 1} of {len(seeds)}")
        folder = None if config.run_dir is None else config.run_dir / f"s{seed}"
        try:
            status, run_dir = start(dataclasses.replace(config, seed=seed, run_dir=folder))
        except UserError as error:
            console.say(f"error: seed {seed}: {' '.join(str(error).split())}")
            failed += 1
            continue
        if status:
            left = " ".join(map(str, seeds[number + 1 :]))
            rest = f"; the others have not begun: repeat the command with --seeds {left}" if left else ""
            console.say(f"stopped in seed {seed}{rest}")
            return status
        done.append(run_dir)
    for line in summary_lines(done):
        console.say(line)
    return 2 if failed else 0


def summary_lines(run_dirs: Sequence[Path]) -> list[str]:
    """Success of each finished run, the mean over seeds with its 95 % interval, and the command for a report."""
    lines, before, after = [], [], []
    for run_dir in run_dirs:
        summary = runs.read_json(run_dir / "summary.json")
        before.append(summary["warm_start_success"])
        after.append(summary["final_success"])
        lines.append(f"{run_dir}: success {before[-1]:.0%} before, {after[-1]:.0%} after")
    if len(run_dirs) > 1:
        for name, values in (("before", before), ("after", after)):
            mean, low, high = mean_interval(values)
            lines.append(
                f"mean {name} over {len(values)} seeds: {mean:.0%} "
                f"(95 % interval {max(0.0, low):.0%} to {min(1.0, high):.0%})"
            )
        lines.append(f"report: paw-fast report {shlex.join(map(str, run_dirs))}")
    return lines
