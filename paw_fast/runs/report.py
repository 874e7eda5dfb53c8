"""Writes the report of one or several runs: a self-contained HTML file with a table of facts and the curves.

`write_report` overlays several runs; `write_curve_png` draws only the success curve. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import user_errors, write_text
from paw_fast.runs.figures import COLOURS, PANELS, Run, draw_panel, draw_stages, draw_success, load_run, to_png, to_svg
from paw_fast.runs.statistics import wilson_interval

_MAX_EPISODE_CHARS = 20_000
_CSS = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --page: #ffffff; --card: #f9fafb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --soft: #9ca3af; --line: #374151; --page: #111827; --card: #1a2333; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 60px; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 17px; margin: 34px 0 12px; }
p { margin: 0 0 12px; } .soft { color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 470px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px 16px 8px;
         background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
figcaption { margin-bottom: 6px; } figcaption b { display: block; }
figcaption span { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 22px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; } tbody th { font-weight: 400; color: var(--soft); white-space: nowrap; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 7px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 6px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 18px;
        min-width: 150px; }
.tile b { display: block; font-size: 24px; font-weight: 650; } .tile span { color: var(--soft); font-size: 13px; }
details { margin: 8px 0; border: 1px solid var(--line); border-radius: 8px; background: var(--card); }
summary { cursor: pointer; padding: 8px 14px; overflow-wrap: anywhere; }
pre { margin: 0; padding: 4px 14px 14px; white-space: pre-wrap; overflow-wrap: anywhere;
      font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
"""


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of one run, or of several runs overlaid, and returns its path.

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
    write_text(out, _page(runs, _labels(paths)))
    return out


def write_curve_png(run_dir: Path, path: Path) -> Path:
    """Draws the success curve of one run (training, evaluations, warm start) as a PNG and returns its path.

    Raises `UserError` when the run has not logged any success rate or the file cannot be written.
    """
    figure = draw_success([load_run(Path(run_dir))], size=(7.5, 3.8))
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


# ------------------------------------------------------------------------------------------------------ facts


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _get(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _join(*parts: Any, by: str = ", ") -> str:
    return by.join(str(part) for part in parts if part not in (None, "", "none")) or "-"


def _with_interval(share: float | None, total: float | None) -> str:
    if share is None or not total or not 0 <= share <= 1:
        return _percent(share)
    low, high = wilson_interval(round(share * total), round(total))
    return f"{_percent(share)} (95 %: {100 * low:.1f} to {100 * high:.1f}, {total:.0f} tasks)"


def _gain(run: Run) -> str:
    start, end = run.number("warm_start_success"), run.number("final_success")
    return "-" if start is None or end is None else f"{100 * (end - start):+.1f} points"


def _world_model(config: Any) -> str:
    paw = _get(config, "paw")
    if not isinstance(paw, dict):
        return "-"
    if paw.get("enabled") is False:
        return "off"
    share = paw.get("alpha")
    return _join(
        paw.get("loss"),
        f"tau {paw['tau']}" if "tau" in paw and paw.get("loss") == "cmae" else None,
        f"{paw.get('selection', '')} selection of {share}" if share is not None else paw.get("selection"),
        f"{paw.get('balance', '')} lambda up to {paw['lambda_0']}" if "lambda_0" in paw else paw.get("balance"),
    )


def _gap(run: Run) -> str:
    """The action gap of the world model on held-out observations, before and after training."""
    ends = [_get(run.summary, key, "action_gap") for key in ("warm_start_world_model", "final_world_model")]
    return " to ".join(f"{gap:.3f}" for gap in ends if isinstance(gap, float))


def _evaluated_on(run: Run) -> str:
    """The evaluation split, and how many of its tasks are also training tasks."""
    split, shared = run.summary.get("eval_split") or _get(run.config, "eval_split"), run.number("eval_tasks_in_train")
    overlap = f"{shared:.0f} of its tasks are also training tasks" if shared and split != "train" else None
    return _join(split, overlap)


def _facts(run: Run) -> dict[str, str]:
    """Returns the rows of the table for a run: name and text, `-` if unknown."""
    config, total = run.config, run.number("num_eval_tasks")
    groups, size = _get(config, "rollout", "groups"), _get(config, "rollout", "group_size")
    done = int(max((row["step"] for row in run.rows), default=0))
    planned = _get(config, "steps")
    return {
        "success after the warm start": _with_interval(run.number("warm_start_success"), total),
        "final success": _with_interval(run.number("final_success"), total),
        "evaluated on": _evaluated_on(run),
        "gain": _gain(run),
        "wall time": _duration(run.number("wall_time_s")),
        "steps": f"{done} of {planned}" if planned is not None else str(done),
        "environment": _join(*(_get(config, "env", key) for key in ("name", "engine", "size", "data"))),
        "model": _join(_get(config, "model", "path"), _get(config, "model", "dtype")),
        "algorithm": _join(_get(config, "algo", "name"), _get(config, "layout")),
        "world model": _world_model(config),
        "episodes per step": _join(f"{groups} groups of {size}" if groups and size else None),
        "learning rate": _join(_get(config, "optim", "learning_rate")),
        "action gap of the world model": _gap(run),
        "seed": _join(_get(config, "seed")),
    }


def _task_types(run: Run) -> dict[str, float]:
    """Returns the success rate per task type: of the last evaluation, else the mean of the last tenth of training."""
    names = {name for row in run.rows for name in row if name.startswith("success/")}
    evaluated = {name[len("success/eval_") :]: name for name in names if name.startswith("success/eval_")}
    evaluated = {kind: name for kind, name in evaluated.items() if kind not in ("rate", "total")}
    trained = {name[len("success/") :]: name for name in names if not name.startswith("success/eval_")}
    trained.pop("rate", None)
    result = {}
    for kind, name in sorted((evaluated or trained).items()):
        values = run.series(name)[1]
        tail = 1 if evaluated else max(1, len(values) // 10)
        if len(values):
            result[kind] = float(values[-tail:].mean())
    return result


# ------------------------------------------------------------------------------------------------------- page


def _table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Returns an HTML table. The cells of `header` must be HTML; all other text is escaped here."""
    head = "".join(f"<th>{cell}</th>" for cell in ("", *header))
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _summary(runs: Sequence[Run], heads: Sequence[str]) -> str:
    facts = [_facts(run) for run in runs]
    rows = [(name, [fact[name] for fact in facts]) for name in facts[0]]
    return _table(heads, [row for row in rows if any(cell != "-" for cell in row[1])])


def _tiles(run: Run) -> str:
    values = {
        "final success": _percent(run.number("final_success")),
        "after the warm start": _percent(run.number("warm_start_success")),
        "gain": _gain(run),
        "wall time": _duration(run.number("wall_time_s")),
    }
    tiles = [
        f'<div class="tile"><b>{escape(text)}</b><span>{escape(name)}</span></div>'
        for name, text in values.items()
        if text != "-"
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _figures(runs: Sequence[Run]) -> str:
    several = len(runs) > 1
    first = "Training episodes, and evaluations with 95 % intervals. Dotted line: after the warm start."
    drawn = [("Success", first, draw_success(runs))]
    drawn += [(panel.title, panel.note, draw_panel(panel, runs)) for panel in PANELS]
    drawn.append(("Time", "Seconds spent in each stage of a step.", draw_stages(runs)))
    parts = []
    for number, (title, note, figure) in enumerate(drawn):
        if figure is not None:
            caption = f"<figcaption><b>{escape(title)}</b><span>{escape(note)}</span></figcaption>"
            parts.append(f"<figure>{caption}{to_svg(figure, f'f{number}')}</figure>")
    if not parts:
        return '<p class="soft">No step has been logged yet.</p>'
    legend = "Colours identify the runs, as in the table. " if several else ""
    note = f'<p class="soft">{legend}Thin lines: measured values. Thick lines: moving average.</p>'
    return f'{note}<div class="figures">{"".join(parts)}</div>'


def _task_type_table(runs: Sequence[Run], heads: Sequence[str]) -> str:
    found = [_task_types(run) for run in runs]
    kinds = sorted(set().union(*found))
    if not kinds:
        return ""
    rows = [(kind.replace("_", " "), [_percent(one.get(kind)) for one in found]) for kind in kinds]
    return f"<h2>Success by task type</h2>{_table(heads, rows)}"


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


def _page(runs: Sequence[Run], labels: Sequence[str]) -> str:
    single = len(runs) == 1
    dots = [f'<span class="dot" style="background:{COLOURS[n % len(COLOURS)]}"></span>' for n in range(len(runs))]
    heads = [("" if single else dot) + escape(label) for dot, label in zip(dots, labels, strict=True)]
    title = labels[0] if single else f"{len(runs)} runs"
    sections = [
        f"<h1>{escape(title)}</h1>",
        '<p class="soft">paw-fast training report</p>',
        _tiles(runs[0]) if single else "",
        "<h2>Runs</h2>" if not single else "<h2>Run</h2>",
        _summary(runs, heads),
        "<h2>Curves</h2>",
        _figures(runs),
        _task_type_table(runs, heads),
        _episodes(runs, labels),
        _configs(runs, labels),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - paw-fast</title><style>{_CSS}</style></head>\n"
        f"<body>{''.join(sections)}</body></html>\n"
    )
