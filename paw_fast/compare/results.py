"""Collects the results of a comparison from its run directories: of each arm, and of each pair of arms.

Imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paw_fast.compare.arms import Arm
from paw_fast.compare.paired import (
    PairedDifference,
    area_under_curve,
    bootstrap_interval,
    seeds_needed,
    sign_flip_test,
    steps_to_reach,
    two_way_interval,
)
from paw_fast.compare.plan import Plan
from paw_fast.errors import UserError
from paw_fast.runs.figures import common_steps
from paw_fast.runs.run_data import Run, load_run
from paw_fast.runs.run_groups import Estimate
from paw_fast.runs.statistics import mean_interval

Series = tuple[np.ndarray, np.ndarray]
"""Steps [k], and values [runs, k]."""


@dataclass(frozen=True)
class ArmResult:
    """The finished runs of an arm, by seed. Produced by `collect`."""

    arm: Arm
    runs: Mapping[int, Run]

    @property
    def name(self) -> str:
        return self.arm.name

    def series(self, metric: str) -> Series:
        """The steps at which all runs logged a metric, and its values."""
        return common_steps([run.series(metric) for run in self.runs.values()])

    def success(self) -> Series:
        """The evaluations, the one before training included."""
        points = [run.evaluations() for run in self.runs.values()]
        return common_steps([(np.array([e.step for e in one]), np.array([e.rate for e in one])) for one in points])

    def final(self, seed: int) -> float:
        """Success of a seed's run in its last evaluation."""
        return float(self.runs[seed].summary["final_success"])

    def area(self, seed: int) -> float:
        """Mean success over the training of a seed's run: the area under its curve of evaluations, over its steps."""
        points = self.runs[seed].evaluations()
        return area_under_curve([one.step for one in points], [one.rate for one in points])

    def estimate(self, values: Sequence[float]) -> Estimate | None:
        """The mean of a value of each run, with Student's interval over the seeds."""
        found = [value for value in values if np.isfinite(value)]
        if len(found) > 1:
            return Estimate(*mean_interval(found), f"{len(found)} seeds")
        return Estimate(found[0], None, None, "1 seed") if found else None

    def before_after(self, before: bool) -> Estimate | None:
        """Success before or after training, over the seeds."""
        key = "warm_start_success" if before else "final_success"
        return self.estimate([float(run.summary[key]) for run in self.runs.values()])

    @property
    def train_seconds(self) -> list[float]:
        """Seconds of the training steps of each run; warm start and evaluations are left out."""
        return [float(_busy(run).sum()) for run in self.runs.values()]

    @property
    def tokens(self) -> list[float]:
        """Tokens that the model processed in the training steps of each run."""
        found = []
        for run in self.runs.values():
            rates = dict(zip(*map(list, run.series("throughput/tokens_per_s")), strict=True))
            steps = run.series("time/step_s")[0]
            found.append(sum(rates.get(s, 0.0) * b for s, b in zip(steps[steps > 0], _busy(run), strict=True)))
        return found

    @property
    def memory_bytes(self) -> list[float]:
        """Peak memory of each run."""
        return [float(values.max()) for run in self.runs.values() if len(values := run.series("memory/peak_bytes")[1])]

    def ends(self, metric: str) -> tuple[float, float] | None:
        """Mean over the runs of a metric's first and last value; None if it was not logged."""
        _, table = self.series(metric)
        return (float(table[:, 0].mean()), float(table[:, -1].mean())) if table.size else None

    def recent(self, metric: str) -> float | None:
        """Mean over the runs of a metric in the last tenth of the steps."""
        found = [value for run in self.runs.values() if (value := run.recent(metric)) is not None]
        return sum(found) / len(found) if found else None


def _busy(run: Run) -> np.ndarray:
    """Seconds of the training steps without evaluations."""
    steps, seconds = run.series("time/step_s")
    evaluated = dict(zip(*map(list, run.series("time/evaluate_s")), strict=True))
    return np.array([t - evaluated.get(s, 0.0) for s, t in zip(steps, seconds, strict=True) if s > 0])


@dataclass(frozen=True)
class PairResult:
    """How the second arm of a pair differs from the first, over the seeds that both have finished.

    success           final success, second minus first, paired over seeds and tasks
    bootstrap         percentile interval of the same by a paired bootstrap over seeds and tasks
    p, p_smallest     paired permutation test over seeds, and the smallest p that so many seeds can give; None for one
    area              difference of the areas under the curves of evaluations
    needed            seeds that would show a difference of `effect` with a power of 80 %; None if no number would, or
                      one seed says nothing
    needed_observed   the same for a difference as large as the one seen

    Produced by `compare_pairs`.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    success: PairedDifference
    bootstrap: tuple[float, float]
    p: float | None
    p_smallest: float | None
    area: Estimate
    effect: float
    needed: int | None
    needed_observed: int | None

    @property
    def told_apart(self) -> bool:
        """Whether the interval excludes 0, and more than one seed was run."""
        return self.success.exceeds_interval and self.success.num_seeds > 1


def collect(plan: Plan) -> list[ArmResult]:
    """The finished runs of each arm, in the plan's order. Raises `UserError` if a run has no outcome of each task."""
    results = []
    for arm in plan.arms:
        runs = {}
        for seed in plan.seeds:
            planned = plan.run(arm.name, seed)
            if not planned.finished:
                continue
            run = load_run(planned.folder)
            won = _outcomes(run)
            if not isinstance(won, list) or len(won) != run.summary.get("num_eval_tasks"):
                raise UserError(f"{planned.folder / 'summary.json'} has no outcome of each evaluation task: restore it")
            runs[seed] = run
        results.append(ArmResult(arm, runs))
    return results


def _outcomes(run: Run) -> Any:
    """1 or 0 for each evaluation task, as the summary has them; of a run of no steps, those before training."""
    return run.summary.get("final_won", run.summary.get("warm_start_won"))


def _won(result: ArmResult, seeds: Sequence[int]) -> np.ndarray:
    """1 or 0 for each seed and task [n, m]."""
    rows = [_outcomes(result.runs[seed]) for seed in seeds]
    if len({len(row) for row in rows}) > 1:
        raise UserError(f"the runs of the arm {result.name} were evaluated on different numbers of tasks")
    return np.array(rows, dtype=np.float64)


def compare_pairs(results: Sequence[ArmResult], effect: float) -> list[PairResult]:
    """Every pair of arms with a seed in common, in their order. effect: the difference to plan for, as a share."""
    pairs = []
    for first, second in itertools.combinations(results, 2):
        seeds = tuple(seed for seed in first.runs if seed in second.runs)
        if not seeds:
            continue
        a, b = _won(first, seeds), _won(second, seeds)
        if a.shape != b.shape or a.shape[1] < 2:
            raise UserError(
                f"the arms {first.name} and {second.name} were evaluated on {a.shape[1]} and {b.shape[1]} tasks, "
                "expected the same tasks, at least 2 (--eval-tasks)"
            )
        found = two_way_interval(b - a)
        several = len(seeds) > 1
        p, smallest = sign_flip_test((b - a).mean(axis=1).tolist()) if several else (None, None)
        areas = [second.area(seed) - first.area(seed) for seed in seeds]
        area = Estimate(*mean_interval(areas)) if several else Estimate(areas[0], None, None)
        seen = abs(found.value)
        pairs.append(
            PairResult(
                first.name, second.name, seeds, found, bootstrap_interval(b - a), p, smallest, area, effect,
                seeds_needed(found, effect) if several else None,
                seeds_needed(found, seen) if several and seen > 0 else None,
            )
        )  # fmt: skip
    return pairs


def reach(results: Sequence[ArmResult]) -> tuple[str, float, dict[str, float | None]]:
    """Sample efficiency: the steps after which each arm's mean curve reaches the final success of RL alone.

    Returns the arm whose final success is the level (`rl`, or else the first arm), that level, and the steps by arm,
    None where the curve does not reach it.
    """
    with_runs = [one for one in results if one.runs]
    base = next((one for one in with_runs if one.name == "rl"), with_runs[0])
    level = float(base.success()[1][:, -1].mean())
    steps = {}
    for one in with_runs:
        at, table = one.success()
        steps[one.name] = steps_to_reach(at.tolist(), table.mean(axis=0).tolist(), level)
    return base.name, level, steps
