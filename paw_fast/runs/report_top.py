"""Builds the first screen of a report: success before and after, whether the gain exceeds chance, problems, the curve.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from paw_fast.runs.figures import COLOURS, to_svg
from paw_fast.runs.run_data import Run
from paw_fast.runs.run_facts import duration, evaluated_on, flags, interval, join, percent, points, progress
from paw_fast.runs.run_groups import Estimate, Group

CSS = """
.top { display: grid; grid-template-columns: minmax(360px, 5fr) 7fr; gap: 18px; margin: 14px 0 6px;
       align-items: start; }
.top > figure { min-width: 0; }
.tiles { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 16px 12px;
        min-width: 0; }
.tile.wide { grid-column: 1 / -1; }
.tile > span { color: var(--soft); font-size: 13px; display: block; }
.tile b { display: block; font-size: 34px; line-height: 1.2; font-weight: 650; white-space: nowrap; }
.tile.wide b { font-size: 22px; }
.bar { position: relative; height: 10px; margin: 8px 0 2px; border: 1px solid var(--line); border-radius: 5px;
       background: var(--page); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.bar i { position: absolute; top: 1px; bottom: 1px; background: var(--fill); border-radius: 4px; }
.bar b { position: absolute; top: -3px; bottom: -3px; width: 3px; margin-left: -1.5px; background: var(--ink); }
.flags { list-style: none; margin: 12px 0 0; padding: 0; font-size: 14px; }
.flags li { padding: 6px 0 6px 24px; position: relative; border-bottom: 1px solid var(--line);
            overflow-wrap: anywhere; }
.flags li::before { content: "\\25B2"; position: absolute; left: 2px; color: var(--warn); font-size: 12px; top: 8px; }
.flags li.fine::before { content: "\\2713"; color: var(--good); font-size: 15px; top: 5px; }
.results { width: 100%; table-layout: fixed; } .results td { padding: 0 12px 6px 0; font-size: 16px; }
.results .name th { border: 0; padding: 8px 0 0; color: var(--ink); overflow-wrap: anywhere; }
.results thead th { font-weight: 400; font-size: 13px; color: var(--soft); padding-right: 12px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 16px; }
@media (max-width: 900px) { .top { grid-template-columns: minmax(0, 1fr); gap: 12px; } }
@media (max-width: 640px) {
  .tiles { gap: 8px; } .tile { padding: 7px 10px 9px; } .tile b { font-size: 26px; } .tile.wide b { font-size: 19px; }
  .tile > span { font-size: 12px; } .flags { font-size: 13px; margin-top: 6px; }
  .results td, .results thead th { padding-right: 7px; } .results small { font-size: 11.5px; }
  .top > figure { padding: 8px 8px 2px; }
}
"""


def first_screen(title: str, groups: Sequence[Group], curve: Figure | None) -> str:
    """Returns the first screen, in HTML. `groups` are the lines of the curve, in the order of its colours."""
    runs = [run for group in groups for run in group.runs]
    left = _tiles(groups[0]) if len(groups) == 1 else _results(groups)
    figure = ""
    if curve is not None:
        caption = "<figcaption><b>Success</b></figcaption>"
        figure = f"<figure>{caption}{to_svg(curve, 'top')}</figure>"
    return (
        f'<h1>{escape(title)}</h1><p class="soft">{escape(_subtitle(runs))}</p>'
        f'<div class="top"><div>{left}{_flags(groups)}</div>{figure}</div>'
    )


def _subtitle(runs: Sequence[Run]) -> str:
    """Returns what was run and how far: environment, algorithm, steps, wall time; of several runs what they share."""

    def shared(texts: Sequence[str]) -> str:
        return texts[0] if all(text == texts[0] for text in texts) and texts[0] != "-" else ""

    about = [
        shared([join(run.setting("env", "name")) for run in runs]),
        shared([join(run.setting("model", "path")) for run in runs]),
        shared([join(run.setting("algo", "name")) for run in runs]),
    ]
    if len(runs) == 1:
        about += [progress(runs[0]), duration(runs[0].wall_time_s)]
    else:
        open_runs = sum(not run.finished for run in runs)
        about.append(f"{open_runs} of {len(runs)} runs not finished" if open_runs else f"{len(runs)} finished runs")
    if tasks := shared([evaluated_on(run) for run in runs]):
        about.append(f"evaluated on {tasks}")
    return ", ".join(part for part in about if part not in ("", "-"))


# --------------------------------------------------------------------------------------------------- one line


def _tiles(group: Group) -> str:
    """Returns the tiles of one run, or of several runs that differ in their seed alone."""
    runs = group.runs
    steps = sorted({int(run.latest.step) for run in runs if run.latest is not None})
    after = f"after {' to '.join(str(step) for step in dict.fromkeys((steps[0], steps[-1])))} steps" if steps else ""
    if steps and not all(run.finished for run in runs):
        after += ", so far"
    tiles = [_tile("before training", group.before), _tile(after or "after training", group.latest)]
    gain, shown = group.gain, ""
    if gain is not None:
        verdict = _verdict(gain)
        about = escape(interval(gain, signed=True))
        shown = (
            f'<div class="tile wide"><span>gain</span><b>{points(gain.value)}</b><span>{about}{verdict}</span></div>'
        )
    elif all(run.latest is None for run in runs) and (rate := _training_rate(runs)) is not None:
        about = "training episodes, mean of the last steps"
        shown = f'<div class="tile wide"><span>{about}</span><b>{percent(rate)}</b></div>'
    return f'<div class="tiles">{"".join(tiles)}{shown}</div>'


def _training_rate(runs: Sequence[Run]) -> float | None:
    rates = [rate for run in runs if (rate := run.recent("success/rate")) is not None]
    return sum(rates) / len(rates) if rates else None


def _verdict(gain: Estimate) -> str:
    if gain.low is None:
        return ""
    return "; more than chance" if gain.exceeds_interval else "; may be chance"


def _tile(name: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return f'<div class="tile"><span>success {escape(name)}</span><b>-</b><span>not evaluated yet</span></div>'
    about, bar = interval(estimate), ""
    if estimate.low is not None and estimate.high is not None:
        low, high = (min(max(100 * end, 0.0), 100.0) for end in (estimate.low, estimate.high))
        at = min(max(100 * estimate.value, 0.0), 100.0)
        ends = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
        bar = f'<div class="bar">{ends}<b style="left:{at:.1f}%"></b></div>'
    return (
        f'<div class="tile"><span>success {escape(name)}</span><b>{percent(estimate.value)}</b>{bar}'
        f"<span>{escape(about)}</span></div>"
    )


# ----------------------------------------------------------------------------------------------- several lines


def value_cell(estimate: Estimate | None, signed: bool = False) -> str:
    """Returns an estimate as the HTML of a table cell, the interval in small type below the value."""
    if estimate is None:
        return "-"
    value = points(estimate.value).removesuffix(" points") if signed else percent(estimate.value)
    about = interval(estimate, signed)
    return escape(value) + (f"<small>{escape(about)}</small>" if about else "")


def _results(groups: Sequence[Group]) -> str:
    """Returns the table of several lines: a row with the name, and below it the numbers.

    The last column is the difference of the last evaluations to the first line's.
    """
    rows = []
    for index, group in enumerate(groups):
        numbers = ", ".join(str(n + 1) for n in group.numbers)
        about = f"runs {numbers}" if len(group.runs) > 1 else f"run {numbers}"
        difference = value_cell(group.difference_to(groups[0]), signed=True) if index else "-"
        cells = [value_cell(group.before), value_cell(group.latest), value_cell(group.gain, signed=True), difference]
        rows.append(
            f'<tr class="name"><th colspan="4"><span class="dot" style="background:{COLOURS[index % len(COLOURS)]}">'
            f'</span>{escape(group.label)} <span class="soft">({about})</span></th></tr>'
            f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    heads = ("success before", "after", "gain, points", "after, against the first")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _flags(groups: Sequence[Group]) -> str:
    """Returns what a reader should know first; of several runs, which runs it is said of."""
    runs = {number: run for group in groups for number, run in zip(group.numbers, group.runs, strict=True)}
    several = len(runs) > 1
    said = _group_flags(groups) if several else flags(runs[0])
    single = [f"run {n + 1}: {text}" for n in sorted(runs) for text in flags(runs[n], result=False)] if several else []
    items = "".join(f"<li>{escape(text)}</li>" for text in said)
    if single:
        listed = "".join(f"<li>{escape(text)}</li>" for text in single)
        title = "1 note on a single run" if len(single) == 1 else f"{len(single)} notes on single runs"
        items += f'<li>{title}<details><summary>show</summary><ul class="flags">{listed}</ul></details></li>'
    if not items:
        known = any(group.gain is not None and group.gain.low is not None for group in groups)
        what = "The gain exceeds its" if len(groups) == 1 else "Every gain exceeds its"
        fine = f"{what} interval, and no step was skipped." if known else "Nothing unusual so far."
        items = f'<li class="fine">{fine}</li>'
    return f'<ul class="flags">{items}</ul>'


def _group_flags(groups: Sequence[Group]) -> list[str]:
    found = []
    for group in groups:
        gain = group.gain
        if gain is None or gain.low is None or gain.exceeds_interval:
            continue
        name = f"{group.label}: the" if len(groups) > 1 else "The"
        found.append(
            f"{name} gain of {points(gain.value)} does not exceed its interval ({interval(gain, signed=True)})."
        )
    return found
