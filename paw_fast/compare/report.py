"""Writes the report of a comparison: HTML, Markdown, JSON and PNG. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from paw_fast.compare.figures import PANELS, draw_metric, draw_pairs, draw_success, write_png
from paw_fast.compare.pairing import verify
from paw_fast.compare.plan import Plan
from paw_fast.compare.results import ArmResult, PairResult, collect, compare_pairs, reach
from paw_fast.compare.sentences import sentence
from paw_fast.compare.tables import TextTable, arm_table, cost_table, pair_table, success_table, world_model_table
from paw_fast.config import to_toml
from paw_fast.runs import run_dir as runs
from paw_fast.runs.atomic_files import write_text
from paw_fast.runs.figures import to_svg
from paw_fast.runs.html_page import html_table, page, small_note
from paw_fast.runs.markdown import table as markdown_table
from paw_fast.runs.run_facts import join

CSS = """
.answers { margin: 14px 0 18px; padding: 0; list-style: none; }
.answers li { padding: 8px 0 8px 26px; position: relative; border-bottom: 1px solid var(--line); font-size: 16px; }
.answers li::before { content: "?"; position: absolute; left: 4px; font-weight: 700; color: var(--soft); }
.answers li.differ::before { content: "\\2260"; color: var(--ink); }
.answers li.differ { font-weight: 600; }
.note { color: var(--soft); font-size: 13.5px; max-width: 105ch; margin-top: 8px; }
.warn { border-left: 4px solid var(--warn); padding: 4px 12px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px; }
th, td { padding-right: 18px; } td { min-width: 84px; }
@media print { .figures { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; } details { display: none; }
  table { font-size: 10.5px; } th, td { padding-right: 8px; min-width: 0; } tr, li, figure { break-inside: avoid; } }
"""


def write_reports(plan: Plan, effect: float, command: str) -> tuple[list[str], Path]:
    """Writes report.html, report.md, report.json and report.png of the finished runs.

    Returns one sentence for each pair of arms, and the path of the HTML file. effect: the difference to plan for, as a
    share. Raises `UserError` if the runs are not comparable, and if there is nothing to compare yet.
    """
    verify(plan.runs)
    results = collect(plan)
    if not any(one.runs for one in results):
        return ["no run has finished yet: there is nothing to compare"], plan.out / "report.html"
    pairs = compare_pairs(results, effect)
    sentences = [sentence(pair) for pair in pairs]
    tables = _tables(plan, results, pairs)
    missing = missing_runs(plan, results)
    write_text(plan.out / "report.md", _markdown(plan, sentences, tables, missing, command))
    runs.write_json(plan.out / "report.json", _json(plan, results, pairs, sentences, missing, command))
    write_png(results, pairs, plan.out / "report.png")
    html = _html(plan, results, pairs, tables, missing, command)
    write_text(plan.out / "report.html", html)
    return sentences, plan.out / "report.html"


def missing_runs(plan: Plan, results: Sequence[ArmResult]) -> list[str]:
    """The runs that are not finished, as `arm s0`."""
    return [f"{one.name} s{seed}" for one in results for seed in plan.seeds if seed not in one.runs]


def _tables(plan: Plan, results: Sequence[ArmResult], pairs: Sequence[PairResult]) -> list[TextTable]:
    threads = "1 CPU thread" if plan.threads == 1 else f"{plan.threads} CPU threads"
    note = f"Each run had {threads}; runs that share a machine slow each other down."
    tables = [success_table(results)]
    tables += [pair_table(pairs)] if pairs else []
    return [*tables, cost_table(results, note), world_model_table(results), arm_table(plan)]


def subtitle(plan: Plan, results: Sequence[ArmResult]) -> str:
    """What was run: environment, model, algorithm, arms, seeds, steps, evaluation tasks, warm starts."""
    config = plan.configs[plan.arms[0].name]
    run = next(run for one in results for run in one.runs.values())
    algos = dict.fromkeys(one.algo.name for one in plan.configs.values())
    warm = {"per-seed": "a warm start for each seed", "shared": "one warm start for all runs"}[plan.warm_starts]
    return join(
        config.env.name, config.model.path, "/".join(algos), f"layout {config.layout}", f"{len(plan.arms)} arms",
        f"{len(plan.seeds)} seeds ({', '.join(map(str, plan.seeds))})", f"{config.steps} steps",
        f"evaluated on {run.summary.get('num_eval_tasks')} {config.eval_split} tasks",
        warm if config.model.path == "tiny" else None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- HTML


def _html(
    plan: Plan, results: Sequence[ArmResult], pairs: Sequence[PairResult], tables: Sequence[TextTable],
    missing: Sequence[str], command: str,
) -> str:  # fmt: skip
    title = f"{', '.join(arm.name for arm in plan.arms)}: a comparison"
    answers = "".join(
        f'<li class="{"differ" if pair.told_apart else "same"}">{escape(sentence(pair))}</li>' for pair in pairs
    )
    lack = ", ".join(missing)
    figures = [
        ("Success", "Held-out tasks; mean over seeds and its 95 % band (Student's t).", draw_success(results)),
        ("Differences", "Filled: the interval excludes 0.", draw_pairs(pairs) if pairs else None),
    ]
    panels = [(name, f"{about}; mean over seeds, 95 % band.", draw_metric(results, m)) for m, name, about in PANELS]
    sections = [
        f'<h1>{escape(title)}</h1><p class="soft">{escape(subtitle(plan, results))}</p>',
        f'<p class="warn">Not finished, and not in this report: {escape(lack)}.</p>' if missing else "",
        f'<ul class="answers">{answers}</ul>' if answers else "<p>No two arms have finished runs of one seed yet.</p>",
        _figures(figures, "top"),
        *(_section(table) for table in tables[:-1]),
        "<h2>Curves</h2>",
        _figures(panels, "panel"),
        _section(tables[-1]),
        _links(plan, results),
        f"<h2>Command</h2><pre>{escape(command)}</pre>",
        f"<details><summary>Settings of the first arm</summary><pre>{escape(_settings(plan))}</pre></details>",
    ]
    return page(title, "".join(sections), CSS)


def _figures(drawn: Sequence[tuple[str, str, Any]], name: str) -> str:
    parts = []
    for number, (title, note, figure) in enumerate(drawn):
        if figure is not None:
            caption = f"<figcaption><b>{escape(title)}</b><span>{escape(note)}</span></figcaption>"
            parts.append(f"<figure>{caption}{to_svg(figure, f'{name}{number}')}</figure>")
    return f'<div class="figures">{"".join(parts)}</div>'


def _section(table: TextTable) -> str:
    rows = [(escape(row[0]), [small_note(cell) for cell in row[1:]]) for row in table.rows]
    body = html_table([escape(head) for head in table.heads[1:]], rows, escape(table.heads[0]))
    return f'<h2>{escape(table.title)}</h2>{body}<p class="note">{escape(table.note)}</p>'


def _links(plan: Plan, results: Sequence[ArmResult]) -> str:
    rows = []
    for one in results:
        links = [
            f'<a href="{quote(f"{one.name}/s{seed}/report.html")}">seed {seed}: {run.summary["final_success"]:.0%}</a>'
            for seed, run in one.runs.items()
        ]
        rows.append((escape(one.name), [", ".join(links) or "-"]))
    return f"<h2>Runs</h2>{html_table(['report of each run'], rows, 'arm')}"


def _settings(plan: Plan) -> str:
    return to_toml(plan.configs[plan.arms[0].name])


# -------------------------------------------------------------------------------------------- Markdown and JSON


def _markdown(
    plan: Plan, sentences: Sequence[str], tables: Sequence[TextTable], missing: Sequence[str], command: str
) -> str:  # fmt: skip
    lines = [f"# {', '.join(arm.name for arm in plan.arms)}: a comparison", "", f"    {command}", ""]
    if missing:
        lines += [f"Not finished, and not in this report: {', '.join(missing)}.", ""]
    lines += [*(f"- {text}." for text in sentences), "", "![success and differences](report.png)", ""]
    for table in tables:
        lines += [f"## {table.title}", "", markdown_table(table.heads, table.rows), "", table.note, ""]
    return "\n".join(lines)


def _json(
    plan: Plan, results: Sequence[ArmResult], pairs: Sequence[PairResult], sentences: Sequence[str],
    missing: Sequence[str], command: str,
) -> dict[str, Any]:  # fmt: skip
    with_runs = [one for one in results if one.runs]
    base, level, steps = reach(results)
    arms = {}
    for one in with_runs:
        at, table = one.success()
        arms[one.name] = {
            "about": one.arm.about, "settings": one.arm.settings, "seeds": list(one.runs),
            "before": [run.summary["warm_start_success"] for run in one.runs.values()],
            "after": [one.final(seed) for seed in one.runs], "area": [one.area(seed) for seed in one.runs],
            "curve": {"steps": at.tolist(), "success": table.tolist()}, "train_seconds": one.train_seconds,
            "tokens": one.tokens, "peak_memory_bytes": one.memory_bytes, "steps_to_reach": steps[one.name],
            "metrics": {metric: one.ends(metric) for metric, _, _ in PANELS},
            "world_model": [
                {"before": run.summary.get("warm_start_world_model"), "after": run.summary.get("final_world_model")}
                for run in one.runs.values()
            ],
        }  # fmt: skip
    return {
        "command": command, "seeds": list(plan.seeds), "warm_starts": plan.warm_starts, "missing": list(missing),
        "reach": {"arm": base, "success": level}, "arms": arms,
        "pairs": [
            {**dataclasses.asdict(pair), "told_apart": pair.told_apart, "sentence": text}
            for pair, text in zip(pairs, sentences, strict=True)
        ],
    }  # fmt: skip
