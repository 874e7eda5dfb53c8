"""Draws the figures of reports with matplotlib, without a display. Imports no torch.

Data is drawn in fixed colours. Text, axes and grids are drawn in a placeholder colour, which the SVG replaces by the
text colour of the page (`currentColor`), so that the figures are readable on light and on dark pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from paw_fast.runs.atomic_files import user_errors
from paw_fast.runs.run_data import Run
from paw_fast.runs.statistics import mean_interval

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#ca8a04", "#06b6d4", "#ec4899", "#84cc16", "#78716c")
STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_INK = "#010203"
STYLE: dict[Any, Any] = {
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
_NEUTRAL = "#8b8f98"
_SIZE = (5.2, 3.1)
_MAX_POINTS = 1500

Line = Sequence[Run]
"""One line of a figure: a run, or several runs that differ in their seed alone and are drawn as mean and band."""


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


def common_steps(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps [n] that all series contain, and the values [runs, n] at these steps."""
    found = [(steps, values) for steps, values in found if len(steps)]
    if not found:
        return np.zeros(0), np.zeros((0, 0))
    shared = reduce(np.intersect1d, [steps for steps, _ in found])
    return shared, np.array([values[np.searchsorted(steps, shared)] for steps, values in found])


def _line(ax: Axes, line: Line, metric: str, colour: str, style: Any) -> None:
    """Draws a metric of one run, or the mean of several with a band from the lowest to the highest."""
    steps, table = common_steps([run.series(metric) for run in line])
    if not len(steps):
        return
    mean = table.mean(axis=0)
    if len(steps) == 1:
        ax.plot(steps, mean, "o", color=colour, markersize=4)
        return
    x, raw, soft = _thin(steps, mean, smooth(mean))
    if len(table) > 1:
        low, high = _thin(smooth(table.min(axis=0)), smooth(table.max(axis=0)))
        ax.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    elif len(steps) >= 30:
        ax.plot(x, raw, color=colour, alpha=0.25, linewidth=1, linestyle="-")
    ax.plot(x, soft, color=colour, linestyle=style)


def draw_panel(panel: Panel, lines: Sequence[Line]) -> Figure | None:
    """Draws a panel. Colours distinguish the lines or, if there is only one, metrics. Returns None without data."""
    present = []
    for row in panel.axes:
        logged = [pair for pair in row if any(len(run.series(pair[0])[0]) for line in lines for run in line)]
        present += [logged] if logged else []
    if not present:
        return None
    several = len(lines) > 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots(len(present), 1, sharex=True, squeeze=False)[:, 0]
        for order, (ax, metrics) in enumerate(zip(axes, present, strict=True)):
            handles = []
            for index, (metric, label) in enumerate(metrics):
                style = STYLES[index % len(STYLES)] if several else "-"
                for number, line in enumerate(lines):
                    colour = COLOURS[(number if several else index + order) % len(COLOURS)]
                    _line(ax, line, metric, colour, style)
                ink = _NEUTRAL if several else COLOURS[(index + order) % len(COLOURS)]
                handles.append(Line2D([], [], color=ink, linestyle=style, label=label))
            if len(handles) > 1:
                ax.legend(handles=handles, loc="best")
            if len(panel.axes) > 1:
                ax.set_ylabel(metrics[0][1])
            if panel.percent:
                ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
                ax.set_ylim(-0.02, 1.02)
            else:
                _widen(ax)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
        axes[-1].set_xlabel("step")
        return figure


def _widen(ax: Axes) -> None:
    """Widens the y axis of a constant curve, whose tick labels would otherwise be offsets such as 1e-14 + 0.02."""
    low, high = ax.get_ylim()
    size = max(abs(low), abs(high))
    if high - low < 1e-3 * size:
        ax.set_ylim(min(0.0, 1.5 * low), max(0.0, 1.5 * high))


def draw_success(lines: Sequence[Line], size: tuple[float, float] | None = None) -> Figure | None:
    """Draws the success rate: training episodes, evaluations with 95 % intervals, and the level before training.

    Returns None if there is no data.
    """
    if not any(run.evaluations() or len(run.series("success/rate")[0]) for line in lines for run in line):
        return None
    single, groups = len(lines) == 1, any(len(line) > 1 for line in lines)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size or _SIZE, layout="constrained")
        ax = figure.subplots()
        shown = set()
        for number, line in enumerate(lines):
            colour = COLOURS[number % len(COLOURS)]
            marker = COLOURS[1] if single else colour
            _line(ax, line, "success/rate", colour, "-")
            if any(len(run.series("success/rate")[0]) for run in line):
                shown.add("training")
            points = _evaluated(line)
            if points:
                x, y, low, high = (np.array(column) for column in zip(*points, strict=True))
                ax.errorbar(
                    x, y, yerr=np.clip([y - low, high - y], 0, None), fmt="o", markersize=5.5, capsize=3,
                    elinewidth=1.2, color=marker, zorder=3,
                )  # fmt: skip
                shown.add("evaluation")
                if points[0][0] == 0:
                    ax.axhline(points[0][1], color=marker, linestyle=STYLES[2], linewidth=1.3, alpha=0.8)
                    shown.add("start")
        ink = (COLOURS[0], COLOURS[1]) if single else (_NEUTRAL, _NEUTRAL)
        mean = ", mean" if groups else ""
        handles: dict[str, Any] = {
            "training": Line2D([], [], color=ink[0], label=f"training episodes{mean}"),
            "evaluation": Line2D([], [], color=ink[1], marker="o", linestyle="", label=f"evaluation{mean}, 95 %"),
            "start": Line2D([], [], color=ink[1], linestyle=STYLES[2], linewidth=1.3, label="before training"),
        }
        kept = [handle for name, handle in handles.items() if name in shown]
        if groups:
            kept.append(Patch(color=ink[0], alpha=0.2, linewidth=0, label="lowest to highest run"))
        ax.set_ylim(-0.02, 1.02)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
        ax.set_xlabel("step")
        figure.legend(handles=kept, loc="outside upper left", ncols=2 if groups else 3, fontsize=8, columnspacing=1.0)
        return figure


def _evaluated(line: Line) -> list[tuple[float, float, float, float]]:
    """Returns (step, success, low, high) of the evaluations of a run, or of the steps at which all runs have one."""
    if len(line) == 1:
        return [one[:4] for one in line[0].evaluations()]
    found = [run.evaluations() for run in line]
    series = [(np.array([e.step for e in one]), np.array([e.rate for e in one])) for one in found if one]
    steps, table = common_steps(series)
    if len(table) < 2:
        return [(float(step), float(rate), float(rate), float(rate)) for step, rate in zip(steps, *table, strict=True)]
    return [(float(step), *mean_interval(column.tolist())) for step, column in zip(steps, table.T, strict=True)]


def draw_stages(lines: Sequence[Line], most: int = 8) -> Figure | None:
    """Draws the seconds spent in each stage of the training steps; step 0, which only sets up, is left out.

    Stacked over the steps for one run; mean per step as bars, one for each run, for several. At most `most` stages are
    drawn separately, the others are summed. Returns None if no stage was timed.
    """
    runs = [run for line in lines for run in line]
    numbers = [number for number, run in enumerate(runs, 1) if run.stages]
    runs = [run for run in runs if run.stages]
    if not runs:
        return None
    totals: dict[str, float] = {}
    for run in runs:
        for stage in run.stages:
            steps, seconds = run.series(f"time/{stage}_s")
            totals[stage] = totals.get(stage, 0.0) + float(seconds[steps > 0].sum())
    named = sorted((stage for stage in totals if stage != "other"), key=lambda stage: -totals[stage])
    kept, rest = named[:most], [*named[most:], *(["other"] if "other" in totals else [])]
    labels = [stage.replace("_", " ") for stage in kept] + (["other"] if rest else [])
    colours = [*COLOURS[: len(kept)], "#9ca3af"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_SIZE[0], max(_SIZE[1], 1.3 + 0.4 * len(runs))), layout="constrained")
        ax = figure.subplots()
        groups = [[stage] for stage in kept] + ([rest] if rest else [])
        if len(runs) == 1:
            steps, table = _stage_table(runs[0], groups)
            if len(steps) == 1:  # an area needs two points: draw one step as wide as a bar
                steps, table = np.array([steps[0] - 0.4, steps[0] + 0.4]), [np.repeat(row, 2) for row in table]
            ax.stackplot(_thin(steps)[0], [_thin(row)[0] for row in table], labels=labels, colors=colours, alpha=0.85)
            ax.set_xlabel("step")
            ax.set_ylabel("seconds")
            ax.margins(x=0)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
        else:
            left = np.zeros(len(runs))
            means = np.array([[row.mean() for row in _stage_table(run, groups)[1]] for run in runs])
            for index, label in enumerate(labels):
                ax.barh(range(len(runs)), means[:, index], left=left, color=colours[index], label=label, alpha=0.85)
                left += means[:, index]
            ax.set_yticks(range(len(runs)), [str(number) for number in numbers])
            ax.invert_yaxis()
            ax.set_xlabel("seconds per step (mean)")
            ax.set_ylabel("run")
        figure.legend(loc="outside right upper", handlelength=1.0, fontsize=8.5)
        return figure


def _stage_table(run: Run, groups: Sequence[Sequence[str]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the training steps [n] at which any stage was timed, and the seconds [n] of each group of stages.

    A stage that did not run in a step counts as 0 s.
    """
    found = {}
    for stage in (stage for group in groups for stage in group):
        steps, seconds = run.series(f"time/{stage}_s")
        found[stage] = steps[steps > 0], seconds[steps > 0]
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
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="(?=[a-zA-Z]+_\d)', f'id="{name}-', text)
    return re.sub(r"<svg [^>]*>", lambda tag: re.sub(r' (width|height)="[^"]*"', "", tag[0]), text, count=1)


def to_png(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG on a white background at 150 dpi. Raises `UserError` when it cannot be written."""
    with user_errors("write the figure", path), mpl.rc_context(STYLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})
