"""Compares algorithms, switches or ablations in short training runs that share one warm-started model.

    python bench/algorithms/compare.py --out runs/algorithms                 # four algorithms, with and without PaW
    python bench/algorithms/compare.py --out runs/switches --set switches    # de-duplication, layout and horizon
    python bench/algorithms/compare.py --out runs/ablations --set ablations  # selection, loss, balance, ECHO, TAPO

Runs use the tiny ALFWorld preset. Writes OUT/table.md, OUT/table.json and OUT/report.html, which shows all runs in the
same charts. Stops at the first run that fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from paw_fast.runs.figures import draw_success, to_png
from paw_fast.runs.metrics import read_metrics
from paw_fast.runs.report import write_report
from paw_fast.runs.run_data import load_run
from paw_fast.runs.statistics import wilson_interval

# With the default learning rate of 1e-5, a critic of 2 million parameters learns nothing in a dozen steps.
PPO = ["--algo", "ppo", "--critic.learning-rate", "1e-3"]
WINDOW = ["--layout", "window", "--algo.minibatch-size", "160"]
SETS: dict[str, dict[str, list[str]]] = {
    "algorithms": {
        f"{name}{'' if paw else ', no PaW'}": [*options, f"--paw.{'' if paw else 'no-'}enabled"]
        for name, options in {
            "grpo": ["--algo", "grpo"], "rloo": ["--algo", "rloo"], "gigpo": ["--algo", "gigpo"], "ppo": PPO,
        }.items()
        for paw in (True, False)
    },
    "switches": {
        "paw": [],
        "de-duplicated": ["--paw.deduplicate"],
        "window": WINDOW,
        "window, horizon 2": [*WINDOW, "--paw.horizon", "2"],
        "window, horizon 3": [*WINDOW, "--paw.horizon", "3"],
    },
    "ablations": {
        "paw": [],
        "no selection": ["--paw.selection", "all", "--paw.alpha", "1"],
        "random selection": ["--paw.selection", "random"],
        "lowest entropy": ["--paw.selection", "lowest"],
        "cross-entropy": ["--paw.loss", "ce"],
        "plain mae": ["--paw.loss", "mae"],
        "fixed lambda": ["--paw.balance", "fixed"],
        "echo": ["--paw.selection", "all", "--paw.alpha", "1", "--paw.loss", "ce", "--paw.balance", "fixed",
                 "--paw.lambda-0", "0.05"],
        "tapo": ["--paw.selection", "all", "--paw.alpha", "1", "--paw.loss", "ce", "--paw.balance", "fixed",
                 "--paw.update", "alternate"],
    },
}  # fmt: skip


def train(run: Path, options: list[str]) -> float:
    """Runs `paw-fast train`; returns its wall time in seconds."""
    start = time.monotonic()
    command = [sys.executable, "-m", "paw_fast.cli.main", "train", "--preset", "tiny", *options, "--run-dir", str(run)]
    subprocess.run(command, check=True)
    return time.monotonic() - start


def row(name: str, run: Path, seconds: float) -> dict[str, object]:
    """The values of a run's row in the table."""
    summary = json.loads((run / "summary.json").read_text())
    rows = read_metrics(run)[1:]
    mean = lambda key: sum(r.get(key, 0.0) for r in rows) / len(rows)  # noqa: E731
    return {
        "run": name, "before": summary["warm_start_success"], "after": summary["final_success"],
        "tasks": summary["num_eval_tasks"], "selected_share": mean("wm/selected_share"),
        "world_model_before": summary["warm_start_world_model"], "world_model_after": summary["final_world_model"],
        "update_s": mean("time/update_s"), "step_s": mean("time/step_s"), "wall_s": seconds,
        "spent_in_steps": len(rows),
    }  # fmt: skip


def table(rows: list[dict], about: str) -> str:
    lines = [
        about, "",
        "| run | success before | after (95 %) | held-out p, before | after | action gap, before | after "
        "| selected | update s | wall s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for r in rows:
        low, high = wilson_interval(round(r["after"] * r["tasks"]), r["tasks"])
        a, b = r["world_model_before"], r["world_model_after"]
        lines.append(
            f"| {r['run']} | {r['before']:.0%} | {r['after']:.0%} ({low:.0%} to {high:.0%}) | {a['probability']:.3f} "
            f"| {b['probability']:.3f} | {a['action_gap']:.3f} | {b['action_gap']:.3f} | {r['selected_share']:.2f} "
            f"| {r['update_s']:.2f} | {r['wall_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the results")
    parser.add_argument("--set", choices=SETS, default="algorithms")
    parser.add_argument("--warm-start", type=Path, help="a warm-started model (default: train one first)")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--eval-tasks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    short = ["--seed", str(options.seed), "--eval-tasks", str(options.eval_tasks), "--eval-every", "0"]
    model = options.warm_start
    if model is None:
        train(options.out / "warm", [*short, "--steps", "0"])
        model = options.out / "warm" / "warm_start"
    rows, runs = [], []
    for name, more in SETS[options.set].items():
        run = options.out / name.replace(", ", "-").replace(" ", "-")
        seconds = train(run, ["--model", str(model), *short, "--steps", str(options.steps), *more])
        rows.append(row(name, run, seconds))
        runs.append(run)
        about = (
            f"`python bench/algorithms/compare.py --set {options.set} --steps {options.steps} --seed {options.seed}`, "
            f"{date.today()}, {platform.machine()} CPU."
        )
        (options.out / "table.md").write_text(table(rows, about))
        (options.out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_report(runs, options.out / "report.html")
    figure = draw_success([[load_run(run)] for run in runs])
    if figure is not None:
        to_png(figure, options.out / "success.png")
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    main()
