"""Measures the step time and the utilization of the three pipelines (sync, stream, async) on the same work.

    python bench/orchestrator.py                       # vLLM and the trainer on one core each; about 5 minutes
    python bench/orchestrator.py --engine transformers

Trains the tiny model on ALFWorld from one warm start. The learning rate is close to 0, so that all pipelines have the
same episodes. There are two cases: all episodes in flight at once, where the update takes longer, and few slots, where
the rollouts take longer. Values are medians over the middle steps of a run. In `sync`, rollouts and updates (token
statistics, update and weight sync) never compete for the machine, so max(rollout, update) of `sync` is the lower bound
that the step time of `async` is compared with.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from paw_fast.config import TrainConfig, load_preset

MODES = ("sync", "stream", "async")
FIRST_STEPS = 2  # not counted: caches are cold, and async has nothing to overlap yet


def load_config(args: argparse.Namespace, mode: str, slots: int, model: str) -> TrainConfig:
    base, replace = load_preset("tiny", "alfworld"), dataclasses.replace
    return replace(
        base, steps=args.steps, eval_tasks=2, eval_every=0, save_every=1000, profile=True,
        env=replace(base.env, num_train=200, num_unseen=12),
        rollout=replace(
            base.rollout, groups=args.groups, group_size=8, slots=slots, engine=args.engine, placement="process",
            cores=1,
        ),
        warm_start=replace(base.warm_start, episodes=300, epochs=1),
        optim=replace(base.optim, learning_rate=1e-9),
        model=replace(base.model, path=model),
        pipeline=replace(base.pipeline, name=mode),
    )  # fmt: skip


def run(config: TrainConfig, folder: Path) -> None:
    """A training run, in a separate process because it changes the process's CPU affinity permanently."""
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(config, folder))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"the run in {folder} ended with status {process.exitcode}: see {folder}/output.log")


def _train(config: TrainConfig, folder: Path) -> None:
    from paw_fast.trainer import train

    folder.mkdir(parents=True)
    with open(folder / "output.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with contextlib.suppress(AttributeError):
        import torch

        torch.set_num_threads(1)
    sys.exit(train(config, folder))


def figures(folder: Path) -> dict[str, float]:
    """Medians over the middle steps: seconds of the step and its parts, utilization, and turns per episode."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] > FIRST_STEPS][:-1]  # the last step includes an evaluation

    def median(*names: str) -> float:
        return statistics.median(sum(row.get(f"time/{name}_s", 0.0) for name in names) for row in rows)

    return {
        "step_s": median("step"), "rollout_s": median("rollout", "wait"), "update_s": median("score", "update", "sync"),
        "trainer_busy": 1 - statistics.median(row["idle/trainer"] for row in rows),
        "generator_busy": 1 - statistics.median(row["idle/generator"] for row in rows),
        "length": statistics.median(row["episode/length_mean"] for row in rows),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--few-slots", type=int, default=4)
    parser.add_argument("--out", type=Path, help="folder for pipeline.json and pipeline.md")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="paw-fast-"))
    os.environ.setdefault("XDG_CACHE_HOME", str(work / "cache"))
    episodes = args.groups * 8
    cpu = platform.processor() or platform.machine()
    lines = [
        f"{args.engine} and the trainer on one core each, {cpu}, {args.groups} x 8 episodes per step, medians of steps "
        f"{FIRST_STEPS + 1} to {args.steps - 1}", "",
        "| case | mode | step, s | of sync | rollout or wait, s | update, s | trainer busy | generator busy | turns |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    found: dict[str, dict[str, dict[str, float]]] = {}
    model = "tiny"
    for case, slots in ((f"{episodes} slots", episodes), (f"{args.few_slots} slots", args.few_slots)):
        found[case] = {}
        for mode in MODES:
            folder = work / f"{slots}-{mode}"
            run(load_config(args, mode, slots, model), folder)
            if model == "tiny":
                model = str(folder / "warm_start")
            f = found[case][mode] = figures(folder)
            lines.append(
                f"| {case} | {mode} | {f['step_s']:.2f} | {f['step_s'] / found[case]['sync']['step_s']:.2f} | "
                f"{f['rollout_s']:.2f} | {f['update_s']:.2f} | {f['trainer_busy']:.0%} | {f['generator_busy']:.0%} | "
                f"{f['length']:.1f} |"
            )
            print(lines[-1], flush=True)
    for case, modes in found.items():
        rollout, update = modes["sync"]["rollout_s"], modes["sync"]["update_s"]
        bound = max(rollout, update)
        lines += ["", f"{case}: max(rollout, update) of sync = max({rollout:.2f}, {update:.2f}) = {bound:.2f} s; "
                  f"the step of async is {modes['async']['step_s'] / bound:.2f} of it"]  # fmt: skip
        print("\n".join(lines[-2:]), flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "pipeline.md").write_text("\n".join(lines) + "\n")
        (args.out / "pipeline.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
