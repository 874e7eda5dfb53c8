"""Reads the files of a run directory for reports and figures. Imports no torch."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import user_errors
from paw_fast.runs.metrics import read_metrics
from paw_fast.runs.statistics import wilson_interval

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def is_plottable(value: float) -> bool:
    """Returns True for values that are finite and small enough for an axis; diverged runs may log others."""
    return -1e100 < value < 1e100


class Evaluation(NamedTuple):
    """Success rate on the evaluation tasks after a step, with its 95 % Wilson interval.

    `total` is the number of tasks; if it is unknown it is 0, and the interval is the rate itself.

    >>> Evaluation(40, 0.5, 0.4038, 0.5962, 100).successes
    50
    """

    step: float
    rate: float
    low: float
    high: float
    total: int

    @property
    def successes(self) -> int:
        return round(min(max(self.rate, 0.0), 1.0) * self.total)


@dataclass(frozen=True)
class Run:
    """The contents of a run directory. Produced by `load_run`, consumed by the figures and the report.

    `rows` are the rows of metrics.jsonl, `summary` is summary.json, `config` and `config_text` are config.toml.
    """

    path: Path
    rows: Sequence[Mapping[str, float]]
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps [n] and plottable values [n] of a metric. The last row wins if a step was logged twice."""
        found = {row["step"]: row[name] for row in self.rows if name in row and is_plottable(row[name])}
        steps = sorted(found)
        return np.array(steps, dtype=float), np.array([found[step] for step in steps], dtype=float)

    def recent(self, name: str) -> float | None:
        """Returns the mean of a metric over the last tenth of its steps (at least one), or None if it was not logged.

        Step 0, which only evaluates, does not count.
        """
        steps, values = self.series(name)
        values = values[steps > 0]
        return float(values[-max(1, len(values) // 10) :].mean()) if len(values) else None

    @cached_property
    def stages(self) -> list[str]:
        """Names of the stages timed in training steps, in descending order of total time. Step 0 is left out."""
        totals: dict[str, float] = {}
        for row in self.rows:
            for name, value in row.items():
                match = re.fullmatch(r"time/(.+)_s", name)
                if match and match[1] != "step" and row["step"] > 0 and is_plottable(value):
                    totals[match[1]] = totals.get(match[1], 0.0) + value
        return sorted((name for name in totals if totals[name] > 0), key=lambda name: -totals[name])

    def setting(self, *keys: str) -> Any:
        """Returns a value of config.toml by its keys, such as `setting("env", "name")`, or None."""
        found: Any = self.config
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def number(self, key: str) -> float | None:
        """Returns a finite number from summary.json, or None."""
        value = self.summary.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_plottable(value):
            return None
        return float(value)

    @cached_property
    def done(self) -> int:
        """The last step that was logged."""
        return int(max((row["step"] for row in self.rows), default=0))

    @cached_property
    def planned(self) -> int | None:
        """The number of steps of the run, or None if it is unknown."""
        steps = self.setting("steps")
        return steps if isinstance(steps, int) and not isinstance(steps, bool) else None

    @property
    def finished(self) -> bool:
        """Whether all planned steps were logged; a run of unknown length counts as finished if it has a summary."""
        return bool(self.summary) if self.planned is None else self.done >= self.planned

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of each training step."""
        steps, seconds = self.series("time/step_s")
        return seconds[steps > 0].tolist()

    @property
    def wall_time_s(self) -> float | None:
        """Wall time in seconds: of the summary if it belongs to the last step, else the sum of the logged steps."""
        total = self.number("wall_time_s")
        if total is not None and (self.finished or self.number("steps") == self.done):
            return total
        logged = self.series("time/step_s")[1]
        return float(logged.sum()) if len(logged) else total

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the end: the median step times the number of remaining steps."""
        seconds = self.step_seconds
        return None if self.finished or not seconds or not self.planned else (
            statistics.median(seconds) * (self.planned - self.done)
        )  # fmt: skip

    def evaluations(self) -> list[Evaluation]:
        """Returns all evaluations in order of their steps.

        The summary adds those before training and at its `evaluated_step` if metrics.jsonl does not contain them.
        """
        steps, rates = self.series("success/eval_rate")
        points = dict(zip(steps.tolist(), rates.tolist(), strict=True))
        first, last = self.number("warm_start_success"), self.number("final_success")
        if first is not None:
            points.setdefault(0.0, first)
        if last is not None:
            at = self.number("evaluated_step")
            points.setdefault(float(at if at is not None else self.done or self.planned or 1), last)
        totals = dict(zip(*(axis.tolist() for axis in self.series("success/eval_total")), strict=True))
        result = []
        for step, rate in sorted(points.items()):
            total = max(0, round(totals.get(step, self.number("num_eval_tasks") or 0)))
            ends = wilson_interval(round(min(max(rate, 0), 1) * total), total) if total > 0 else (rate, rate)
            result.append(Evaluation(step, rate, *ends, total))
        return result

    @cached_property
    def before(self) -> Evaluation | None:
        """The evaluation before training."""
        return next((one for one in self.evaluations() if one.step == 0), None)

    @cached_property
    def latest(self) -> Evaluation | None:
        """The last evaluation after at least one training step."""
        return next((one for one in reversed(self.evaluations()) if one.step > 0), None)


def load_run(path: Path) -> Run:
    """Reads a run directory. Some of its files may be missing. Raises `UserError`, which names the file or folder."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no run at {path}: give a run directory")
    if not any((path / name).is_file() for name in ("metrics.jsonl", "summary.json", "config.toml")):
        raise UserError(f"{path} is not a run directory: it contains no metrics.jsonl, summary.json or config.toml")
    summary, config, config_text = {}, {}, ""
    source = path / "summary.json"
    try:
        with user_errors("read the run", source):
            if source.is_file():
                summary = json.loads(source.read_text(encoding="utf-8"))
            source = path / "config.toml"
            if source.is_file():
                config_text = source.read_text(encoding="utf-8")
                config = tomllib.loads(config_text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source} cannot be read ({error}): restore it or remove it") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path / 'summary.json'} cannot be read (it is not a JSON object): restore it or remove it")
    return Run(path, read_metrics(path), summary, config, config_text)
