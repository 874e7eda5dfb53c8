"""Writes the report of one or several runs: a self-contained HTML file with results, problems, curves and settings.

The first screen answers what was reached and whether it is more than chance; everything else is below. Runs that
differ in their seed alone are shown as one line, with mean and band. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import user_errors, write_text
from paw_fast.runs.figures import COLOURS, PANELS, Line, draw_panel, draw_stages, draw_success, to_png, to_svg
from paw_fast.runs.html_page import html_table, page, small_note, table
from paw_fast.runs.report_top import CSS, first_screen, value_cell
from paw_fast.runs.run_data import Run, load_run
from paw_fast.runs.run_facts import facts, percent, task_types
from paw_fast.runs.run_groups import Group, differing_settings, group_runs

EPISODES_PAGE = "episodes.html"
"""Name of the episodes page, which is written beside the report and linked from it."""

_MAX_EPISODE_CHARS = 20_000


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of one run, or of several runs together, and returns its path.

    Args:
        run_dirs: run directories.
        out: the HTML file. Defaults to `report.html` in the run directory or, for several runs, in the parent folder of
            the first run.

    Metrics that no run logged have no panel. Raises `UserError` when a directory is not a run directory or contains a
    damaged file, and when the report cannot be written.
    """
    if not run_dirs:
        raise UserError("no run to report on: give a run directory")
    paths = [Path(path).resolve() for path in run_dirs]
    if len(set(paths)) != len(paths):
        raise UserError("the same run is given twice: give each run once")
    runs = [load_run(Path(path)) for path in run_dirs]
    if out is None:
        out = (paths[0] if len(paths) == 1 else paths[0].parent) / "report.html"
    if out.is_dir():
        raise UserError(f"{out} is a folder: give the name of the HTML file to write")
    write_text(out, _page(runs, _labels(paths), _episodes_link(paths, out)))
    return out


def write_curve_png(run_dir: Path, path: Path) -> Path:
    """Draws the success curve of one run (training episodes and evaluations) as a PNG and returns its path.

    Raises `UserError` when the run has not logged any success rate or the file cannot be written.
    """
    run = load_run(Path(run_dir))
    figure = draw_success([[run]], size=(7.5, 3.8)) if run.rows else None
    if figure is None:
        raise UserError(f"{run_dir} has no success curve yet: no step has been logged")
    to_png(figure, Path(path))
    return Path(path)


def _labels(paths: Sequence[Path]) -> list[str]:
    """Returns short, unique names of the runs: the folder name, with as many parent folders as needed."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _episodes_link(paths: Sequence[Path], out: Path) -> bool:
    return len(paths) == 1 and out.resolve().parent == paths[0] and (paths[0] / EPISODES_PAGE).is_file()


# ----------------------------------------------------------------------------------------------------- sections


def _comparison(rows: Sequence[tuple[str, Sequence[str]]], heads: Sequence[str], same: str) -> str:
    """Returns a table of the rows in which the columns differ; the others are folded away under the title `same`."""
    rows = [row for row in rows if any(cell != "-" for cell in row[1])]
    if len(heads) == 1:
        return table(heads, rows)
    differ = [row for row in rows if any(cell != row[1][0] for cell in row[1])]
    equal = [(name, cells[:1]) for name, cells in rows if all(cell == cells[0] for cell in cells)]
    folded = f"<details><summary>{escape(same)}</summary>{table([''], equal)}</details>" if equal else ""
    shown = [(escape(name), [small_note(cell) for cell in cells]) for name, cells in differ]
    return (html_table(heads, shown) if shown else "") + folded


def _facts_table(runs: Sequence[Run], heads: Sequence[str]) -> str:
    found = [facts(run) for run in runs]
    names = dict.fromkeys(name for one in found for name in one)
    rows = [(name, [one.get(name, "-") for one in found]) for name in names]
    shown = {name for name, _ in rows}
    if len(runs) > 1:
        differing = differing_settings(runs).items()
        rows += [(key, [_text(value) for value in values]) for key, values in differing if key not in shown]
    return _comparison(rows, heads, "The same in all runs")


def _text(value: object) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _kl_note(lines: Sequence[Line]) -> str:
    """Returns a note for the KL panel that says in which runs there is no KL term, so that no curve is expected."""
    runs = [run for line in lines for run in line]
    off = [n for n, run in enumerate(runs, 1) if run.setting("algo", "kl_coef") == 0]
    if not off or any(len(run.series("policy/kl")[0]) for run in runs if run.setting("algo", "kl_coef") == 0):
        return ""
    if len(off) == len(runs):
        return " The KL term is off (algo.kl_coef = 0)."
    return f" The KL term is off in {'run' if len(off) == 1 else 'runs'} {', '.join(map(str, off))}."


def _figures(lines: Sequence[Line]) -> str:
    drawn = []
    for panel in PANELS:
        note = panel.note
        if any(name == "policy/kl" for row in panel.axes for name, _ in row):
            note += _kl_note(lines)
        drawn.append((panel.title, note, draw_panel(panel, lines)))
    drawn.append(("Time", "Seconds spent in each stage of a training step; step 0 is left out.", draw_stages(lines)))
    parts = []
    for number, (title, note, figure) in enumerate(drawn):
        if figure is not None:
            caption = f"<figcaption><b>{escape(title)}</b><span>{escape(note)}</span></figcaption>"
            parts.append(f"<figure>{caption}{to_svg(figure, f'f{number}')}</figure>")
    if not parts:
        return '<p class="soft">No step has been logged yet.</p>'
    legend = "Colours identify the lines, as in the first table. " if len(lines) > 1 else ""
    legend += "Thin lines: measured values. Thick lines: moving average."
    if any(len(line) > 1 for line in lines):
        legend += " Of runs that differ in their seed alone: the mean, and a band from the lowest to the highest run."
    return f'<p class="soft">{legend}</p><div class="figures">{"".join(parts)}</div>'


def _task_type_table(runs: Sequence[Run], heads: Sequence[str]) -> str:
    found = [task_types(run) for run in runs]
    kinds = sorted(set().union(*found))
    if not kinds:
        return ""
    columns = ["success", "95 % interval", "tasks"]
    if len(runs) == 1:
        rows = []
        for kind in kinds:
            one = found[0][kind]
            ends = "-" if one.low is None or one.high is None else f"{100 * one.low:.1f} to {100 * one.high:.1f}"
            rows.append((kind.replace("_", " "), [percent(one.value), ends, one.source.removesuffix(" tasks") or "-"]))
        return f"<h2>Success by task type</h2>{table(columns, rows)}"
    cells = [(escape(kind.replace("_", " ")), [value_cell(one.get(kind)) for one in found]) for kind in kinds]
    return f"<h2>Success by task type</h2>{html_table(heads, cells)}"


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name) if part]


def _episodes(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """Returns the first, the middle and the last sampled episode of each run."""
    parts = []
    for run, label in zip(runs, labels, strict=True):
        found = sorted((run.path / "episodes").glob("*.txt"), key=_natural)
        picked = dict.fromkeys(found[index] for index in (0, len(found) // 2, len(found) - 1)) if found else {}
        for path in picked:
            with user_errors("read the episode", path):
                text = path.read_text(encoding="utf-8", errors="replace")
            if len(text) > _MAX_EPISODE_CHARS:
                text = f"{text[:_MAX_EPISODE_CHARS]}\n... (continued in {path.name})"
            name = f"{label}: {path.stem}" if len(runs) > 1 else path.stem
            parts.append(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>")
    return f"<h2>Sampled episodes</h2>{''.join(parts)}" if parts else ""


def _configs(runs: Sequence[Run], labels: Sequence[str]) -> str:
    parts = [
        f"<details><summary>{escape(label)}: config.toml</summary><pre>{escape(run.config_text)}</pre></details>"
        for run, label in zip(runs, labels, strict=True)
        if run.config_text
    ]
    return f"<h2>Settings</h2>{''.join(parts)}" if parts else ""


# ------------------------------------------------------------------------------------------------------- page


def _run_heads(runs: Sequence[Run], labels: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Returns the column titles of the runs, in HTML: the label, and for several runs number and colour."""
    if len(runs) == 1:
        return [escape(labels[0])]
    colours = {n: COLOURS[index % len(COLOURS)] for index, group in enumerate(groups) for n in group.numbers}
    return [
        f'<span class="dot" style="background:{colours[n]}"></span>{n + 1}. {escape(label)}'
        for n, label in enumerate(labels)
    ]


def _page(runs: Sequence[Run], labels: Sequence[str], episodes_page: bool) -> str:
    single = len(runs) == 1
    groups = group_runs(runs, labels)
    lines: list[Line] = [group.runs for group in groups]
    heads = _run_heads(runs, labels, groups)
    title = labels[0] if single else f"{len(runs)} runs"
    link = f'<p><a href="{EPISODES_PAGE}">Episodes, token by token: what the policy expects to see</a></p>'
    sections = [
        first_screen(title, groups, draw_success(lines)),
        link if episodes_page else "",
        "<h2>Run</h2>" if single else "<h2>Runs</h2>",
        _facts_table(runs, heads),
        _task_type_table(runs, heads),
        "<h2>Curves</h2>",
        _figures(lines),
        _episodes(runs, labels),
        _configs(runs, labels),
    ]
    return page(title, "".join(sections), CSS)
