"""Draws the figures of reports with matplotlib, without a display. Imports no torch.

Data is drawn in fixed colours. Text, axes and grids are drawn in a placeholder colour, which the SVG replaces by the
text colour of the page (`currentColor`), so that the figures are readable on light and on dark pages.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import user_errors
from paw_fast.runs.metrics import read_metrics
from paw_fast.runs.statistics import wilson_interval

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#ca8a04", "#06b6d4", "#ec4899", "#84cc16", "#78716c")
STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.8,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "path.simplify": True,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
}
_MAX_POINTS = 1500


def is_plottable(value: float) -> bool:
    """Returns True for values that are finite and small enough for an axis; diverged runs may log others."""
    return -1e100 < value < 1e100


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

    @cached_property
    def stages(self) -> list[str]:
        """Names of the timed stages, in descending order of total time."""
        totals: dict[str, float] = {}
        for row in self.rows:
            for name, value in row.items():
                match = re.fullmatch(r"time/(.+)_s", name)
                if match and match[1] != "step" and is_plottable(value):
                    totals[match[1]] = totals.get(match[1], 0.0) + value
        return sorted((name for name in totals if totals[name] > 0), key=lambda name: -totals[name])

    def number(self, key: str) -> float | None:
        """Returns a finite number from summary.json, or None."""
        value = self.summary.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_plottable(value):
            return None
        return float(value)

    def evaluations(self) -> list[tuple[float, float, float, float]]:
        """Returns (step, success rate, low, high) for each evaluation.

        `low` and `high` are the 95 % Wilson interval, or the rate itself if the number of tasks is unknown.
        """
        steps, rates = self.series("success/eval_rate")
        points = dict(zip(steps.tolist(), rates.tolist(), strict=True))
        first, last = self.number("warm_start_success"), self.number("final_success")
        if first is not None:
            points.setdefault(0.0, first)
        if last is not None and self.rows:
            points.setdefault(float(max(row["step"] for row in self.rows)), last)
        totals = dict(zip(*(axis.tolist() for axis in self.series("success/eval_total")), strict=True))
        result = []
        for step, rate in sorted(points.items()):
            total = round(totals.get(step, self.number("num_eval_tasks") or 0))
            ends = wilson_interval(round(min(max(rate, 0), 1) * total), total) if total > 0 else (rate, rate)
            result.append((step, rate, *ends))
        return result


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
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source} cannot be read ({error}): restore it or remove it") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path / 'summary.json'} cannot be read (it is not a JSON object): restore it or remove it")
    return Run(path, read_metrics(path), summary, config, config_text)


# ---------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Panel:
    """Definition of a figure.

    Each entry of `axes` is one subplot: pairs of a metric and its label. The subplots share their x axis.

    >>> Panel("Reward", "Mean return.", ((("reward/mean", "with penalties"),),)).title
    'Reward'
    """

    title: str
    note: str
    axes: tuple[tuple[tuple[str, str], ...], ...]
    percent: bool = False


PANELS = (
    Panel(
        "Reward",
        "Mean return of the training episodes.",
        ((("reward/mean", "with penalties"), ("reward/return_mean", "without")),),
    ),
    Panel(
        "World-model weight and clipped tokens",
        "Lambda decreases as groups succeed. Clipped tokens are those the model already predicts (p ≥ tau).",
        ((("wm/lambda_mean", "lambda"), ("wm/clipped_token_ratio", "clipped-token ratio")),),
    ),
    Panel(
        "Next-observation error",
        "Mean of 1 - p over the selected observation tokens.",
        ((("wm/next_observation_error", "error"),),),
    ),
    Panel(
        "Held-out prediction",
        "Mean probability of the next observation's tokens in evaluation episodes; shuffled: given another action.",
        ((("wm/eval_probability", "actual action"), ("wm/eval_shuffled_probability", "shuffled action")),),
    ),
    Panel("Action entropy", "Mean over the sampled tokens, in nats.", ((("policy/entropy", "entropy"),),)),
    Panel(
        "KL and clip fraction",
        "KL divergence from the reference policy (nats per token); share of action tokens whose ratio is clipped.",
        ((("policy/kl", "KL"),), (("policy/clip_fraction", "clip fraction"),)),
    ),
    Panel(
        "Critic",
        "Share of the variance of the value targets that the values explain (PPO).",
        ((("critic/explained_variance", "explained variance"),),),
    ),
    Panel("Gradient norm", "Before clipping.", ((("optim/grad_norm", "norm"),),)),
    Panel(
        "Episodes",
        "Mean number of actions in an episode; share of invalid actions.",
        ((("episode/length_mean", "length"),), (("episode/invalid_action_rate", "invalid"),)),
    ),
    Panel(
        "Engine and trainer",
        "Mean absolute difference of their log-probs for the same tokens, in nats.",
        ((("rollout/logprob_gap_mean", "mean gap"),),),
    ),
    Panel(
        "Idle devices",
        "Share of the step in which the trainer and the rollout workers were idle. Evaluations are excluded.",
        ((("idle/trainer", "trainer"), ("idle/generator", "rollout workers")),),
        percent=True,
    ),
    Panel(
        "Staleness",
        "Updates between the weights that sampled a token and those trained on it; share of capped importance weights.",
        ((("async/staleness_mean", "mean staleness"),), (("async/importance_capped_share", "capped"),)),
    ),
    Panel("Throughput", "Tokens processed per second.", ((("throughput/tokens_per_s", "tokens/s"),),)),
)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average [n] -> [n]. The window is about a fifteenth of the run and is truncated at both ends."""
    half = len(values) // 30
    total = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _thin(*arrays: np.ndarray) -> list[np.ndarray]:
    stride = -(-len(arrays[0]) // _MAX_POINTS)
    return [array[::stride] for array in arrays]


def _line(ax: Axes, run: Run, metric: str, colour: str, style: Any, label: str | None) -> bool:
    steps, values = run.series(metric)
    if not len(steps):
        return False
    x, raw, soft = _thin(steps, values, smooth(values))
    if len(steps) == 1:
        ax.plot(x, raw, "o", color=colour, label=label, markersize=4)
        return True
    if len(steps) >= 30:
        ax.plot(x, raw, color=colour, alpha=0.25, linewidth=1, linestyle="-")
    ax.plot(x, soft, color=colour, linestyle=style, label=label)
    return True


def draw_panel(panel: Panel, runs: Sequence[Run]) -> Figure | None:
    """Draws a panel. Colours distinguish runs or, for a single run, metrics. Returns None if there is no data."""
    present = [row for row in panel.axes if any(len(run.series(name)[0]) for name, _ in row for run in runs)]
    if not present:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6, 3.1), layout="constrained")
        axes = figure.subplots(len(present), 1, sharex=True, squeeze=False)[:, 0]
        for order, (ax, metrics) in enumerate(zip(axes, present, strict=True)):
            for index, (metric, label) in enumerate(metrics):
                for number, run in enumerate(runs):
                    colour = COLOURS[(number if len(runs) > 1 else index + order) % len(COLOURS)]
                    style = STYLES[index % len(STYLES)] if len(runs) > 1 else "-"
                    _line(ax, run, metric, colour, style, label if number == 0 else None)
            if len(metrics) > 1:
                ax.legend(loc="best")
            if len(present) > 1:
                ax.set_ylabel(next(label for _, label in metrics))
            if panel.percent:
                ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
                ax.set_ylim(-0.02, 1.02)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes[-1].set_xlabel("step")
        return figure


def draw_success(runs: Sequence[Run], size: tuple[float, float] = (6, 3.1)) -> Figure | None:
    """Draws the success rate: training episodes, evaluations with 95 % intervals, and the warm start as a dotted line.

    Returns None if there is no data.
    """
    if not any(run.evaluations() or len(run.series("success/rate")[0]) for run in runs):
        return None
    single = len(runs) == 1
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.subplots()
        for number, run in enumerate(runs):
            colour = COLOURS[number % len(COLOURS)]
            marker = COLOURS[1] if single else colour
            _line(ax, run, "success/rate", colour, "-", "training episodes" if number == 0 else None)
            points = run.evaluations()
            if points:
                x, y, low, high = (np.array(column) for column in zip(*points, strict=True))
                ax.errorbar(
                    x, y, yerr=np.clip([y - low, high - y], 0, None), fmt="o", markersize=5.5, capsize=3,
                    elinewidth=1.2, color=marker, label="evaluation, 95 % interval" if number == 0 else None, zorder=3,
                )  # fmt: skip
            start = run.number("warm_start_success")
            if start is not None:
                line = "warm start" if number == 0 else None
                ax.axhline(start, color=marker, linestyle=STYLES[2], linewidth=1.3, alpha=0.8, label=line)
        ax.set_ylim(-0.02, 1.02)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.set_xlabel("step")
        ax.legend(loc="best", ncols=1)
        return figure


def draw_stages(runs: Sequence[Run], most: int = 8) -> Figure | None:
    """Draws the seconds spent in each stage: stacked over the steps for one run, mean per step as bars for several.

    At most `most` stages are drawn separately; the others are summed. Returns None if no stage was timed.
    """
    runs = [run for run in runs if run.stages]
    if not runs:
        return None
    totals: dict[str, float] = {}
    for run in runs:
        for stage in run.stages:
            totals[stage] = totals.get(stage, 0.0) + float(run.series(f"time/{stage}_s")[1].sum())
    named = sorted((stage for stage in totals if stage != "other"), key=lambda stage: -totals[stage])
    kept, rest = named[:most], [*named[most:], *(["other"] if "other" in totals else [])]
    labels = [stage.replace("_", " ") for stage in kept] + (["other"] if rest else [])
    colours = [*COLOURS[: len(kept)], "#9ca3af"]
    with mpl.rc_context(_STYLE):
        height = 3.1 if len(runs) == 1 else 1.3 + 0.4 * len(runs)
        figure = Figure(figsize=(6, height), layout="constrained")
        ax = figure.subplots()
        groups = [[stage] for stage in kept] + ([rest] if rest else [])
        if len(runs) == 1:
            steps, table = _stage_table(runs[0], groups)
            ax.stackplot(_thin(steps)[0], [_thin(row)[0] for row in table], labels=labels, colors=colours, alpha=0.85)
            ax.set_xlabel("step")
            ax.set_ylabel("seconds")
            ax.margins(x=0)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        else:
            left = np.zeros(len(runs))
            means = np.array([[row.mean() for row in _stage_table(run, groups)[1]] for run in runs])
            for index, label in enumerate(labels):
                ax.barh(range(len(runs)), means[:, index], left=left, color=colours[index], label=label, alpha=0.85)
                left += means[:, index]
            ax.set_yticks(range(len(runs)), [str(number + 1) for number in range(len(runs))])
            ax.invert_yaxis()
            ax.set_xlabel("seconds per step (mean); runs in the order of the table")
        figure.legend(loc="outside right upper", handlelength=1.0, fontsize=8.5)
        return figure


def _stage_table(run: Run, groups: Sequence[Sequence[str]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the steps [n] at which any stage was timed, and the seconds [n] of each group of stages.

    A stage that did not run in a step counts as 0 s.
    """
    found = {stage: run.series(f"time/{stage}_s") for group in groups for stage in group}
    steps = np.unique(np.concatenate([steps for steps, _ in found.values()]))
    rows = []
    for group in groups:
        row = np.zeros(len(steps))
        for stage in group:
            at, seconds = found[stage]
            row[np.searchsorted(steps, at)] += seconds
        rows.append(row)
    return steps, rows


# ----------------------------------------------------------------------------------------------------- output


def to_svg(figure: Figure, name: str) -> str:
    """Returns the figure as an SVG element for an HTML page. `name` makes its ids unique within the page."""
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="(?=[a-zA-Z]+_\d)', f'id="{name}-', text)
    return re.sub(r"<svg [^>]*>", lambda tag: re.sub(r' (width|height)="[^"]*"', "", tag[0]), text, count=1)


def to_png(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG on a white background at 150 dpi. Raises `UserError` when it cannot be written."""
    with user_errors("write the figure", path), mpl.rc_context(_STYLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})
