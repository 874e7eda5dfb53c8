"""Groups runs that differ in their seed alone, and estimates success of a run or a group. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paw_fast.runs.run_data import Evaluation, Run
from paw_fast.runs.statistics import mean_interval, newcombe_interval, welch_interval

_NOT_COMPARED = {"seed", "run_dir", "rollout.chat_date", "push_to_hub", "push_private"}
_MOST_NAMED = 3


@dataclass(frozen=True)
class Estimate:
    """A share or a difference of shares, with its 95 % interval if there is one, and what it was measured on.

    >>> Estimate(0.1, -0.05, 0.25, "3 runs").exceeds_interval
    False
    """

    value: float
    low: float | None
    high: float | None
    source: str = ""

    @property
    def exceeds_interval(self) -> bool:
        """Whether there is an interval and it does not contain 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Group:
    """Runs with the same settings except for the seed; often a single run. Produced by `group_runs`.

    `numbers` are the positions of the runs in the list given to `group_runs`.
    """

    label: str
    runs: tuple[Run, ...]
    numbers: tuple[int, ...]

    @property
    def before(self) -> Estimate | None:
        """Success before training, the mean over the runs that have been evaluated."""
        return _mean([run.before for run in self.runs])

    @property
    def latest(self) -> Estimate | None:
        """Success in the last evaluation of each run, the mean over the runs."""
        return _mean([run.latest for run in self.runs])

    @property
    def gain(self) -> Estimate | None:
        """Difference of the last evaluation and the one before training.

        Its interval is that of two proportions for one run, and that of the mean of the runs' gains for several.
        """
        pairs = [(run.before, run.latest) for run in self.runs]
        found = [(before, latest) for before, latest in pairs if before is not None and latest is not None]
        if len(found) > 1:
            return Estimate(*mean_interval([b.rate - a.rate for a, b in found]), f"{len(found)} runs")
        return _difference(*found[0]) if found else None

    def difference_to(self, other: Group) -> Estimate | None:
        """Difference of the last evaluations, this group's minus the other's.

        It has an interval if both have several runs (Welch) or both have one (two proportions).
        """
        ours, theirs = ([run.latest for run in group.runs if run.latest is not None] for group in (self, other))
        if not ours or not theirs:
            return None
        if len(ours) == len(theirs) == 1:
            return _difference(theirs[0], ours[0])
        source = f"{len(ours)} and {len(theirs)} runs"
        rates = [one.rate for one in theirs], [one.rate for one in ours]
        if min(map(len, rates)) > 1:
            return Estimate(*welch_interval(*rates), source)
        first, second = (sum(values) / len(values) for values in rates)
        return Estimate(second - first, None, None, source)


def of_evaluation(one: Evaluation, tasks: str = "tasks") -> Estimate:
    """Returns a single evaluation as an estimate."""
    if not one.total:
        return Estimate(one.rate, None, None)
    return Estimate(one.rate, one.low, one.high, f"{one.total} {tasks}")


def _mean(evaluations: Sequence[Evaluation | None]) -> Estimate | None:
    found = [one for one in evaluations if one is not None]
    if len(found) > 1:
        return Estimate(*mean_interval([one.rate for one in found]), f"{len(found)} runs")
    return of_evaluation(found[0]) if found else None


def _difference(first: Evaluation, second: Evaluation) -> Estimate:
    value = second.rate - first.rate
    if not (first.total and second.total and 0 <= first.rate <= 1 and 0 <= second.rate <= 1):
        return Estimate(value, None, None)
    ends = newcombe_interval((first.successes, second.successes), (first.total, second.total))
    totals = sorted({first.total, second.total})
    return Estimate(value, *ends, f"{' and '.join(map(str, totals))} tasks")


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings by their dotted keys.

    >>> flat_settings({"seed": 1, "env": {"name": "alfworld"}})
    {'seed': 1, 'env.name': 'alfworld'}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the settings in which the runs differ: dotted key -> one value for each run, None where it is missing.

    The seed and the folder of the run do not count.
    """
    flat = [flat_settings(run.config) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one if key not in _NOT_COMPARED)
    rows = {key: [one.get(key) for one in flat] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def group_runs(runs: Sequence[Run], labels: Sequence[str]) -> list[Group]:
    """Groups runs whose settings differ in the seed alone, in order of their first runs.

    A group is named by the settings in which the groups differ; a single run by its own label. Runs without a
    config.toml form groups of their own.
    """
    members: dict[Any, list[int]] = {}
    for number, run in enumerate(runs):
        settings = {key: value for key, value in flat_settings(run.config).items() if key not in _NOT_COMPARED}
        key = tuple(sorted((name, repr(value)) for name, value in settings.items())) or number
        members.setdefault(key, []).append(number)
    differing = differing_settings([runs[numbers[0]] for numbers in members.values()])
    groups = []
    for index, numbers in enumerate(members.values()):
        label = labels[numbers[0]]
        if len(numbers) > 1:
            label = _settings_label({key: values[index] for key, values in differing.items()}) or "all runs"
        groups.append(Group(label, tuple(runs[n] for n in numbers), tuple(numbers)))
    return groups


def _settings_label(settings: Mapping[str, Any]) -> str:
    shown = [f"{key} = {_toml(value)}" for key, value in list(settings.items())[:_MOST_NAMED]]
    more = len(settings) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "none" if value is None else str(value)
