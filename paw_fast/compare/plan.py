"""Plans a comparison and keeps its folder: which runs there are, their settings, and whether a command continues it.

    OUT/compare.json           arms, seeds and what else the command says
    OUT/settings/ARM.toml      the settings of an arm, but for the seed
    OUT/ARM/s0/                a run directory for each arm and seed
    OUT/logs/ARM-s0.txt        what the run printed
    OUT/report.{html,md,json,png}

Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paw_fast import __version__
from paw_fast.compare.arms import Arm
from paw_fast.config import TrainConfig, load_toml, to_toml, with_chat_date
from paw_fast.config.resume import differences, flag
from paw_fast.errors import UserError
from paw_fast.runs import run_dir as runs
from paw_fast.runs.atomic_files import user_errors, write_text

PLAN = "compare.json"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison: an arm with a seed."""

    arm: str
    seed: int
    config: TrainConfig
    log: Path

    @property
    def folder(self) -> Path:
        assert self.config.run_dir is not None
        return self.config.run_dir

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the summary is written."""
        return runs.read_json(self.folder / "summary.json").get("steps") == self.config.steps


@dataclass(frozen=True)
class Plan:
    """What a comparison runs. Produced by `make_plan`.

    out, arms, seeds   the folder, the arms in their order, the seeds
    configs            the settings of each arm, without seed and folder
    warm_starts        `per-seed`: a warm start for each seed, shared by its arms; `shared`: one for all runs
    threads            CPU threads of each run; it decides the order of sums, so it stays what it was at the start
    """

    out: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    configs: Mapping[str, TrainConfig]
    warm_starts: str
    threads: int

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs, seed by seed, so that complete pairs come early."""
        return [self.run(arm.name, seed) for seed in self.seeds for arm in self.arms]

    def run(self, arm: str, seed: int) -> PlannedRun:
        """The run of an arm with a seed."""
        config = self.configs[arm]
        if self.warm_starts == "per-seed":
            config = dataclasses.replace(config, warm_start=dataclasses.replace(config.warm_start, seed=seed))
        config = dataclasses.replace(config, seed=seed, run_dir=self.out / arm / f"s{seed}")
        return PlannedRun(arm, seed, config, self.out / "logs" / f"{arm}-s{seed}.txt")


def default_folder(arms: Sequence[Arm], configs: Mapping[str, TrainConfig], warm_starts: str) -> Path:
    """The folder of a comparison that names none: the same for the same command, whatever its number of seeds."""
    about = json.dumps([warm_starts, *([arm.name, to_toml(configs[arm.name])] for arm in arms)])
    env = re.sub(r"[^A-Za-z0-9_.-]+", ".", next(iter(configs.values())).env.name)
    return Path("runs") / f"compare-{env}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


def make_plan(
    out: Path, arms: Sequence[Arm], seeds: Sequence[int], configs: Mapping[str, TrainConfig], warm_starts: str,
    jobs: int,
) -> Plan:  # fmt: skip
    """Returns the plan of a command in its folder. Nothing is written.

    A command that began the comparison, or that adds seeds or arms to it, continues it. Raises `UserError` for another
    one, with the difference.
    """
    before = runs.read_json(out / PLAN)
    if not before:
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is not empty and holds no comparison: choose another folder with --out")
        dated = {name: with_chat_date(config) for name, config in configs.items()}
        return Plan(out, tuple(arms), tuple(seeds), dated, warm_starts, _threads(jobs))
    _check_same(out, before, arms, seeds, configs, warm_starts)
    date = str(before["chat_date"])
    dated = {name: _with_date(config, date) for name, config in configs.items()}
    return Plan(out, tuple(arms), tuple(seeds), dated, warm_starts, int(before["threads"]))


def _with_date(config: TrainConfig, date: str) -> TrainConfig:
    """The config with the date on which the comparison began, if the command gives none."""
    if config.rollout.chat_date:
        return config
    return dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, chat_date=date))


def _threads(jobs: int) -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(given) if given.isdecimal() and int(given) else max(1, cores // jobs)


def _check_same(
    out: Path, before: Mapping[str, Any], arms: Sequence[Arm], seeds: Sequence[int],
    configs: Mapping[str, TrainConfig], warm_starts: str,
) -> None:  # fmt: skip
    try:
        had_seeds, had_arms = [int(seed) for seed in before["seeds"]], [str(one["name"]) for one in before["arms"]]
        date, _, had_warm_starts = str(before["chat_date"]), int(before["threads"]), before["warm_starts"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{out / PLAN} cannot be read ({error!r}): restore it, or choose another --out") from error
    fix = "give the same command, or choose another folder with --out"
    names = [arm.name for arm in arms]
    if gone := [name for name in had_arms if name not in names]:
        raise UserError(f"--arms: {out} also holds the arm {gone[0]}, which this command leaves out: {fix}")
    if lost := [seed for seed in had_seeds if seed not in seeds]:
        raise UserError(f"--seeds: {out} also holds the seed {lost[0]}, which this command leaves out: {fix}")
    if had_warm_starts != warm_starts:
        raise UserError(f"--warm-starts {warm_starts}: {out} was begun with {had_warm_starts}: {fix}")
    for name in had_arms:
        path = out / "settings" / f"{name}.toml"
        begun, now = load_toml(path, of_run=True), _with_date(configs[name], date)
        changed = [one for one in differences(begun, now) if one[0] not in _of_command_line(now, begun)]
        if changed:
            key, old, new = changed[0]
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise UserError(f"{out} was begun with --{flag(key)} {old} for the arm {name}, now {new}{more}: {fix}")


def _of_command_line(config: TrainConfig, read: TrainConfig) -> set[str]:
    """Settings that no file can give, such as the permission to run code of others."""
    allowed = {"model.trust_remote_code", *(f"env.{field}" for field in config.env.CONSENT_FIELDS)}
    return allowed if type(read.env) is type(config.env) else set()


def write_plan(plan: Plan, command: str) -> None:
    """Writes compare.json and the settings of the arms. Raises `UserError`."""
    with user_errors("write the comparison", plan.out):
        for folder in (plan.out / "settings", plan.out / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
    for arm in plan.arms:
        write_text(plan.out / "settings" / f"{arm.name}.toml", to_toml(plan.configs[arm.name]))
    about = {
        "paw_fast": __version__, "command": command,
        "arms": [{"name": arm.name, "about": arm.about, "settings": arm.settings} for arm in plan.arms],
        "seeds": list(plan.seeds), "warm_starts": plan.warm_starts, "threads": plan.threads,
        "chat_date": plan.configs[plan.arms[0].name].rollout.chat_date,
    }  # fmt: skip
    runs.write_json(plan.out / PLAN, about)
