"""Says what a finished run has reached, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paw_fast.runs.statistics import newcombe_interval, paired_interval
from paw_fast.runs.time_left import clock
from paw_fast.runs.trouble import CONTINUED_GROWTH, continued_warning, text_grew, text_warning


def outcome_lines(run_dir: Path, summary: Mapping[str, Any], evaluated_on: str) -> list[str]:
    """The last lines of a run. `summary`: contents of summary.json; `evaluated_on`: the evaluation tasks in words."""
    after = summary["final_eval"] if "final_eval" in summary else summary["warm_start_eval"]
    quoted = shlex.quote(str(run_dir))
    step = run_dir / "checkpoints" / f"step_{summary['steps']:06d}"
    return [
        f"success on {evaluated_on}: {summary['warm_start_success']:.0%} before, {summary['final_success']:.0%} after "
        f"{summary['steps']} steps (95 % interval {after['low']:.0%} to {after['high']:.0%}), in "
        f"{clock(summary['wall_time_s'])}",
        *describe_gain(summary),
        *describe_side_effects(summary),
        f"model (Hugging Face format): {step}",
        f"report: {run_dir / 'report.html'}",
        "next:",
        f"  paw-fast report {quoted} --episodes 8",
        f"  paw-fast eval {quoted}",
        f"  paw-fast play {quoted}",
    ]


def describe_gain(summary: Mapping[str, Any]) -> list[str]:
    """Whether the gain exceeds its interval, in a line; none if the run has not been evaluated twice."""
    before, after = summary.get("warm_start_eval"), summary.get("final_eval")
    if not before or not after:
        return []
    gain = after["success"] - before["success"]
    won = summary.get("warm_start_won"), summary.get("final_won")
    if won[0] and won[1] and len(won[0]) == len(won[1]):
        low, high = paired_interval(won[0], won[1])
        about = "paired over the same tasks"
    else:  # a run of an earlier version, resumed
        low, high = newcombe_interval(
            (before["successes"], after["successes"]), (before["num_tasks"], after["num_tasks"])
        )
        about = "unpaired"
    if low > 0:
        verdict = "more than chance explains"
    elif high < 0:
        verdict = "a loss, by more than chance explains"
    else:
        verdict = "cannot be told from chance (more --eval-tasks or seeds narrow the interval)"
    return [f"gain {100 * gain:+.0f} points, 95 % interval {100 * low:+.0f} to {100 * high:+.0f} ({about}): {verdict}"]


def describe_side_effects(summary: Mapping[str, Any]) -> list[str]:
    """What training did beside the task, in a line, and a warning for what grew; none for runs of earlier versions."""
    before, after = summary.get("warm_start_eval") or {}, summary.get("final_eval") or {}
    names = ("continued_transcript_rate", "text_loss")
    if any(one.get(name) is None for one in (before, after) for name in names):
        return []
    continued, text = ((before[name], after[name]) for name in names)
    lines = [
        f"side effects: {continued[1]:.1%} of the actions continue the transcript ({continued[0]:.1%} before), loss on "
        f"text of no environment {text[1]:.2f} nats per token ({text[0]:.2f} before)"
    ]
    if (growth := continued[1] - continued[0]) > CONTINUED_GROWTH:
        lines.append(f"warning: {continued_warning(growth)}")
    if text_grew(text[0], growth := text[1] - text[0]):
        lines.append(f"warning: {text_warning(growth)}")
    return lines
