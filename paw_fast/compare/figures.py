"""Draws the figures of a comparison. Each arm has a colour, a line style and a marker, so that none is needed alone.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from paw_fast.compare.results import ArmResult, PairResult, Series
from paw_fast.runs.figures import COLOURS, STYLE, smooth, to_png
from paw_fast.runs.statistics import t_quantile

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (8, 2, 1.5, 2, 1.5, 2)))
SYMBOLS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "◀", "▶", "★")
"""What the tables show beside an arm's name; the same shapes as `MARKERS`."""
PANELS: tuple[tuple[str, str, str], ...] = (
    ("wm/lambda_mean", "Weight of the world-model loss", "lambda, mean over the groups of a step"),
    ("wm/clipped_token_ratio", "Clipped-token ratio", "share of selected observation tokens with p of at least tau"),
    ("wm/next_observation_error", "Next-observation error", "mean of 1 - p over the selected observation tokens"),
    ("wm/eval_probability", "Held-out observation probability", "mean probability of observation tokens, evaluation"),
    ("wm/eval_action_gap", "Action gap", "held-out probability minus that after another transition's action"),
    ("episode/invalid_action_rate", "Invalid actions", "share of actions in training episodes"),
    ("policy/entropy", "Action entropy", "nats per token"),
    ("episode/length_mean", "Episode length", "actions of a training episode"),
)
"""Metrics that are drawn below the success, with title and what they are."""
_LINE_POINTS = 30


def band(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, and the ends of the pointwise 95 % interval over runs (Student's t), of values [runs, k].

    The ends are the mean for a single run.
    """
    mean = table.mean(axis=0)
    if len(table) < 2:
        return mean, mean, mean
    half = t_quantile(len(table) - 1) * table.std(axis=0, ddof=1) / np.sqrt(len(table))
    return mean, mean - half, mean + half


def _look(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)], "markersize": 4.5,
    }  # fmt: skip


def _draw(ax: Axes, series: Series, index: int, share: bool) -> bool:
    steps, table = series
    if not len(steps):
        return False
    mean, low, high = band(table)
    if len(steps) > _LINE_POINTS:
        mean, low, high = smooth(mean), smooth(low), smooth(high)
    if share:
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    look = _look(index)
    ax.plot(steps, mean, markevery=max(1, len(steps) // 12), **look)
    if len(table) > 1:
        ax.fill_between(steps, low, high, color=look["color"], alpha=0.14, linewidth=0)
        for end in (low, high):
            ax.plot(steps, end, color=look["color"], linestyle=look["linestyle"], linewidth=0.6)
    return True


def _legend(results: Sequence[ArmResult], shown: Sequence[int]) -> list[Line2D]:
    return [Line2D([], [], label=results[index].name, **_look(index)) for index in shown]


def _steps_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    ax.set_xlabel("step")


def _success(ax: Axes, results: Sequence[ArmResult]) -> None:
    for index, one in enumerate(results):
        _draw(ax, one.success(), index, share=True)
    low, high = ax.get_ylim()
    ax.set_ylim(max(-0.02, low), min(1.02, high))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _steps_axis(ax)


def draw_success(results: Sequence[ArmResult]) -> Figure:
    """The success of each arm in its evaluations: mean over seeds and its 95 % band."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        ax = figure.subplots()
        _success(ax, results)
        shown = [index for index, one in enumerate(results) if one.runs]
        figure.legend(handles=_legend(results, shown), loc="outside upper left", ncols=4, fontsize=9, handlelength=3.5)
        return figure


def draw_pairs(pairs: Sequence[PairResult]) -> Figure:
    """The difference of each pair of arms with its interval. A filled mark: the interval excludes 0."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.1 + 0.34 * len(pairs)), layout="constrained")
        _pairs(figure.subplots(), pairs)
        return figure


def _pairs(ax: Axes, pairs: Sequence[PairResult]) -> None:
    ink = COLOURS[0]
    widest = max(max(abs(100 * pair.success.low), abs(100 * pair.success.high)) for pair in pairs)
    for row, pair in enumerate(pairs):
        value, low, high = (100 * x for x in (pair.success.value, pair.success.low, pair.success.high))
        ax.errorbar(
            value, row, xerr=[[value - low], [high - value]], fmt="o", markersize=6.5, capsize=4, color=ink,
            markerfacecolor=ink if pair.told_apart else "none",
        )  # fmt: skip
    ax.axvline(0, color=STYLE["axes.edgecolor"], linewidth=1, linestyle=(0, (4, 2)))
    ax.set_yticks(range(len(pairs)), [f"{pair.second} − {pair.first}" for pair in pairs])
    ax.set_ylim(len(pairs) - 0.5, -0.5)
    ax.set_xlim(-1.08 * max(widest, 1.0), 1.08 * max(widest, 1.0))
    ax.set_xlabel("difference in final success, points (95 % interval)")


def draw_metric(results: Sequence[ArmResult], metric: str) -> Figure | None:
    """A metric of each arm over the steps, mean over seeds and its 95 % band. None if no arm logged it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        ax = figure.subplots()
        shown = [index for index, one in enumerate(results) if _draw(ax, one.series(metric), index, share=False)]
        if not shown:
            return None
        _steps_axis(ax)
        figure.legend(handles=_legend(results, shown), loc="outside upper left", ncols=4, fontsize=8, handlelength=3.5)
        return figure


def write_png(results: Sequence[ArmResult], pairs: Sequence[PairResult], path: Path) -> None:
    """Writes success and differences side by side as a PNG. Raises `UserError`."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, max(4.2, 1.4 + 0.34 * len(pairs))), layout="constrained")
        left, right = figure.subplots(1, 2)
        _success(left, results)
        left.set_title("success on held-out tasks", loc="left", fontsize=10)
        shown = [index for index, one in enumerate(results) if one.runs]
        left.legend(handles=_legend(results, shown), loc="best", handlelength=3.5)
        _pairs(right, pairs) if pairs else right.set_axis_off()
        to_png(figure, path)
