"""Runs comparisons for a table of the study, and prints the table. Used by the scripts beside it.

Every comparison is `paw-fast compare` with its own folder below --out; a script that was stopped continues with the
same command. Settings were chosen on other seeds than these: see `SEEDS`.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paw_fast.compare.paired import correlation_interval
from paw_fast.runs.markdown import table as markdown_table
from paw_fast.runs.statistics import mean_interval
from paw_fast.runs.task_record import read_tasks

SEEDS = "10-14"
"""Seeds of the tables. Seeds 0 to 9 are for choosing settings."""
PRESETS = {"alfworld": "tiny-window", "webshop": "webshop-tiny-window"}


@dataclass
class Comparison:
    """One comparison of a table: the cells that name it, its folder, and its options. `report` is report.json."""

    cells: tuple[str, ...]
    folder: Path
    options: Sequence[str]
    report: dict[str, Any] = field(default_factory=dict)


def parser(doc: str) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="folder of the comparisons and the table")
    made.add_argument("--env", choices=PRESETS, default="alfworld")
    made.add_argument("--algo", choices=("grpo", "gigpo"), default="grpo")
    made.add_argument("--seeds", default=SEEDS)
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--jobs", type=int, default=2)
    made.add_argument("--train", default="", help="more options of paw-fast train, as one text")
    return made


def base(options: argparse.Namespace) -> list[str]:
    """The options of `paw-fast compare` that all comparisons of a script share."""
    return [
        "--preset", PRESETS[options.env], "--algo", options.algo, "--steps", str(options.steps), "--seeds",
        options.seeds, "--jobs", str(options.jobs), *shlex.split(options.train),
    ]  # fmt: skip


def run(comparison: Comparison) -> None:
    """Runs a comparison and reads its report. Exits with the status of one that failed or was stopped."""
    command = [sys.executable, "-m", "paw_fast", "compare", "--out", str(comparison.folder), *comparison.options]
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)
    comparison.report = json.loads((comparison.folder / "report.json").read_text(encoding="utf-8"))


def without_success(comparison: Comparison, steps: int = 1) -> float:
    """Share of groups without a success in the first training steps, mean over the runs of RL alone."""
    found = []
    for run_dir in sorted((comparison.folder / "rl").glob("s*")):
        recorded = read_tasks(run_dir)
        found += [recorded[step].share_without_success for step in range(1, steps + 1)]
    return sum(found) / len(found)


def mean(values: Sequence[float]) -> str:
    """A mean of shares in percent, with Student's interval."""
    if len(values) < 2:
        return f"{100 * values[0]:.0f}"
    middle, low, high = mean_interval(values)
    return f"{100 * middle:.0f} ({100 * max(0.0, low):.0f} to {100 * min(1.0, high):.0f})"


def rows(comparison: Comparison, baseline: str = "rl") -> list[tuple[str, ...]]:
    """A row for each arm: success before and after, the difference to the baseline, what is known of observations."""
    found = []
    for name, arm in comparison.report["arms"].items():
        pair = next((p for p in comparison.report["pairs"] if (p["first"], p["second"]) == (baseline, name)), None)
        difference = "-"
        if pair is not None:
            d = pair["success"]
            sign = "" if pair["told_apart"] else ", not told apart"
            difference = f"{100 * d['value']:+.1f} ({100 * d['low']:+.1f} to {100 * d['high']:+.1f}){sign}"
        cells = [arm["metrics"].get(metric) for metric in ("wm/eval_probability", "wm/eval_action_gap")]
        known = ["-" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}" for ends in cells]
        found.append((*comparison.cells, name, mean(arm["before"]), mean(arm["after"]), difference, *known))
    return found


HEADS = (
    "arm", "success before, %", "after, %", "difference to rl, points", "held-out probability", "action gap",
)  # fmt: skip


def action_gap_and_gain(comparisons: Sequence[Comparison]) -> str:
    """Whether runs whose action gap grew more also gained more success: correlation over arms and seeds."""
    gaps, gains = [], []
    for comparison in comparisons:
        for arm in comparison.report["arms"].values():
            for before, after, known in zip(arm["before"], arm["after"], arm["world_model"], strict=True):
                if known["before"] and known["after"]:
                    gaps.append(known["after"]["action_gap"] - known["before"]["action_gap"])
                    gains.append(after - before)
    if len(gaps) < 4:
        return "Too few runs to relate the action gap to the gain."
    r, low, high = correlation_interval(gaps, gains)
    if math.isnan(r):
        return f"The action gap or the gain is the same in all {len(gaps)} runs: nothing to relate."
    return (
        f"Growth of the action gap against the gain in success over {len(gaps)} runs: correlation {r:.2f} (95 % "
        f"interval {low:.2f} to {high:.2f}; runs of one seed share their start, so it is rather too narrow)."
    )


def write(
    out: Path, name: str, heads: Sequence[str], comparisons: Sequence[Comparison], more: Sequence[str] = ()
) -> None:
    """Writes OUT/NAME.md and prints it."""
    lines = [row for comparison in comparisons if comparison.report for row in rows(comparison)]
    command = f"`python {shlex.join(sys.argv)}`"
    text = "\n\n".join([command, markdown_table((*heads, *HEADS), lines), action_gap_and_gain(comparisons), *more])
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(text)
