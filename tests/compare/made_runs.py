"""Run directories made by hand, without training. As a program: a stand-in for `paw-fast` that makes them.

The program knows `train --config FILE` and `train --resume RUN`, and obeys $MADE_RUNS: `ok`, `fail`, `fail ARM`, and
`hang` (until a stop signal, then it exits with 75 as a saved run).
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

GAIN = {"rl": 0.3, "paw": 0.6}
"""Success after training by arm, as far as the seed's noise goes; 0.3 for others."""
NUM_TASKS = 40


def write_made_run(config, final=None, tasks=None, text=None):
    """Writes a finished run: success rises from 0.1 in a line; `won` is drawn by seed and arm.

    config: a `TrainConfig`, or the few fields of it that are used here, with the `text` of its TOML.
    """
    if text is None:
        from paw_fast.config import to_toml

        text = to_toml(config)
    run, arm = config.run_dir, config.run_dir.parent.name
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").write_text(text)
    rng = random.Random(100 * config.seed + len(arm))
    final = GAIN.get(arm, 0.3) if final is None else final
    won = [int(rng.random() < final) for _ in range(NUM_TASKS)]
    rows, steps = [], config.steps
    for step in range(steps + 1):
        rate = 0.1 + (sum(won) / NUM_TASKS - 0.1) * step / max(1, steps)
        row = {
            "step": step, "success/eval_rate": rate, "success/eval_total": NUM_TASKS, "wm/eval_probability": 0.2 + rate,
            "wm/eval_action_gap": rate / 4, "time/step_s": 3.0, "time/evaluate_s": 1.0, "memory/peak_bytes": 2.0**20,
            "throughput/tokens_per_s": 500.0,
        }  # fmt: skip
        if step and config.paw.enabled:
            row |= {
                "wm/lambda_mean": 1 - rate, "wm/clipped_token_ratio": rate, "wm/next_observation_error": 1 - rate,
            }  # fmt: skip
        if step:
            row |= {"episode/invalid_action_rate": 0.25, "policy/entropy": 1.0, "episode/length_mean": 5.0}
        rows.append(row)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_step = tasks or (lambda step: [f"task {config.seed} {step}"])
    lines = [{"step": step, "tasks": of_step(step), "episodes": 4} for step in range(1, steps + 1)]
    (run / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "warm_start_success": 0.1, "final_success": sum(won) / NUM_TASKS, "final_won": won, "steps": steps,
        "num_eval_tasks": NUM_TASKS, "evaluated_step": steps, "wall_time_s": 9.0, "seed": config.seed,
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))


def main():
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib

    _, kind, path = sys.argv[1:4]
    text = (Path(path) if kind == "--config" else Path(path) / "config.toml").read_text()
    values = tomllib.loads(text)
    config = SimpleNamespace(
        run_dir=Path(values["run_dir"]), seed=values["seed"], steps=values["steps"],
        paw=SimpleNamespace(**values["paw"])
    )  # fmt: skip
    arm = config.run_dir.parent.name
    with open(os.environ["MADE_LOG"], "a") as log:
        log.write(f"{arm} s{config.seed} {kind}\n")
    wish = os.environ.get("MADE_RUNS", "ok")
    if wish == "hang" and kind == "--config":
        config.run_dir.mkdir(parents=True)
        (config.run_dir / "config.toml").write_text(text)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        print("training", flush=True)
        while True:
            time.sleep(0.05)
    if wish in ("fail", f"fail {arm}"):
        sys.exit("error: no luck today")
    write_made_run(config, text=text)


if __name__ == "__main__":
    main()
