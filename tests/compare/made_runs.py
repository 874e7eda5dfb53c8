"""Run directories made by hand, without training. As a program: a stand-in for `paw-fast` that makes them.

The program knows `train --config FILE` and `train --resume RUN`, and obeys $MADE_RUNS: `ok`, `fail`, `fail ARM`, and
`hang` (until a stop signal, then it exits with 75 as a saved run).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from paw_fast.config import load_toml
from paw_fast.runs.run_dir import write_config

GAIN = {"rl": 0.3, "paw": 0.6}
"""Success after training by arm, as far as the seed's noise goes; 0.3 for others."""
NUM_TASKS = 40


def write_made_run(config, final=None, tasks=None):
    """Writes a finished run: success rises from 0.1 in a line; `won` is drawn by seed and arm."""
    import numpy as np

    run, arm = config.run_dir, config.run_dir.parent.name
    run.mkdir(parents=True, exist_ok=True)
    write_config(run, config)
    rng = np.random.default_rng([config.seed, len(arm)])
    final = GAIN.get(arm, 0.3) if final is None else final
    won = (rng.random(NUM_TASKS) < final).astype(int).tolist()
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
    _, kind, path = sys.argv[1:4]
    file = Path(path) if kind == "--config" else Path(path) / "config.toml"
    config = load_toml(file)
    assert config.run_dir is not None
    with open(os.environ["MADE_LOG"], "a") as log:
        log.write(f"{config.run_dir.parent.name} s{config.seed} {kind}\n")
    wish = os.environ.get("MADE_RUNS", "ok")
    if wish == "hang" and kind == "--config":
        config.run_dir.mkdir(parents=True)
        write_config(config.run_dir, config)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        print("training", flush=True)
        while True:
            time.sleep(0.05)
    if wish == "fail" or wish == f"fail {config.run_dir.parent.name}":
        sys.exit("error: no luck today")
    write_made_run(config)


if __name__ == "__main__":
    main()
