"""Measures the cost of the world-model loss: whole updates with PaW off and on, on episodes of realistic lengths.

    python bench/learner/overhead.py --data ../shared/data --env alfworld webshop search    # tiny model, one CPU thread
    python bench/learner/overhead.py --data ../shared/data --shape qwen2.5-1.5b --groups 16 --group-size 8    # on a GPU
    python bench/learner/overhead.py --data ../shared/data --fit 20          # tiny model, fitted to the episodes first

A whole update is everything between a step's rollouts and the next weights, configured by the environment's recipe:
token statistics (old log-probs and entropies) of each group, reference log-probs, advantages, selection (alpha 0.75),
packing, forward and backward passes, optimizer and metrics. Updates with PaW off and on alternate; each on is compared
with the mean of the two offs around it. The overhead is the median of these ratios, with a 95 % confidence interval
from order statistics; `noise` is the median difference between consecutive offs. On the CPU, times are CPU seconds of
the process, which exclude waits for a core but not the influence of other processes on caches and clock rate. Peak
memory is measured in a separate process for each.

`floor` is the share of multiplications that PaW adds (selected observation tokens through the backbone including
attention, and their rows through the head): a lower bound for implementations that compute all of them. The breakdown
lists the measured seconds of each part of the update, off and on. `overhead_episodes` explains the episode lengths.

With random weights, no token is saturated. `--fit N` first trains the model for N epochs on the actions and
observations of the timed episodes; `saturated` is the share of selected tokens with p >= tau in the timed updates.
Their rows need no backward pass through the head, which the floor includes, so that the overhead can be below it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from overhead_episodes import episodes_of, mean_lengths
from overhead_floor import work_of

from paw_fast import kernels
from paw_fast.algorithms import world_model
from paw_fast.algorithms.base import make_algorithm
from paw_fast.algorithms.world_model import select_transitions
from paw_fast.config import TrainConfig, load_preset
from paw_fast.learner import Learner, join_groups, optim, packing
from paw_fast.learner import learner as learner_module
from paw_fast.learner.sequences import build_sequences
from paw_fast.learner.update_metrics import UpdateMetrics
from paw_fast.models import tiny
from paw_fast.models.packed_attention import ATTENTION_NAME
from paw_fast.models.policy import Policy
from paw_fast.runs.metrics import peak_memory_bytes
from paw_fast.sft.warm_start import imitate
from paw_fast.types import RolloutBatch, TokenStats, Trajectory

RECIPES = {"alfworld": "qwen2.5-1.5b", "webshop": "qwen2.5-1.5b", "search": "qwen2.5-3b"}
QWEN_1_5B = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True,
}  # fmt: skip
PARTS = (
    "token statistics",
    "backbone forward",
    "head and loss",
    "backward",
    "optimizer",
    "tables and packing",
    "metrics",
    "other",
)


def model_of(shape: str, vocab: int, device: str) -> torch.nn.Module:
    """The tiny model, or a model of Qwen2.5-1.5B's shape with random bfloat16 weights."""
    if shape == "tiny":
        return tiny.build_model(vocab, max_positions=16384)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.Qwen2Config(**QWEN_1_5B), dtype=torch.bfloat16, attn_implementation=ATTENTION_NAME
        )


def batch_of(name: str, layout: str, args: argparse.Namespace) -> tuple[list[Trajectory], TrainConfig, object]:
    """The trajectories of a step, the recipe's config with this layout, and the tokenizer."""
    recipe = load_preset(RECIPES[name], name)
    config = dataclasses.replace(
        recipe, layout=layout, token_budget=args.token_budget, paw=dataclasses.replace(recipe.paw, alpha=0.75),
        model=dataclasses.replace(recipe.model, gradient_checkpointing=True),
    )  # fmt: skip
    groups = max(args.groups, args.count_groups)
    played = episodes_of(name, args.data, groups, args.group_size, config, tuple(args.thought))
    return played[0], config, played[1]


def with_paw(config: TrainConfig, enabled: bool) -> TrainConfig:
    return dataclasses.replace(config, paw=dataclasses.replace(config.paw, enabled=enabled))


def fit(policy: Policy, trajectories: Sequence[Trajectory], config: TrainConfig, epochs: int) -> None:
    """Imitates the episodes, so that most of their tokens become likely."""
    settings = dataclasses.replace(config.warm_start, epochs=epochs, noop_share=0.0, batch_tokens=4096)
    config = dataclasses.replace(config, warm_start=settings)
    sequences = build_sequences(trajectories, config.layout)
    imitated = [True] * sum(len(t.transitions) for t in trajectories)
    imitate(policy, sequences, imitated, config, lambda *_: None)


def learner_of(
    config: TrainConfig, tokenizer, enabled: bool, shape: str, device: str, fitted: Sequence[Trajectory] = (),
    epochs: int = 0,
) -> Learner:  # fmt: skip
    """A learner as in a training run, with a frozen copy of the model as reference if the recipe has a KL term."""
    config = with_paw(config, enabled)
    torch.manual_seed(0)
    model: Any = model_of(shape, len(tokenizer), device).to(device).train()
    if epochs:
        fit(Policy(model, tokenizer), fitted, config, epochs)
    reference = None
    if config.algo.kl_coef > 0:
        frozen: Any = model_of(shape, len(tokenizer), device).to(device)
        frozen.load_state_dict(model.state_dict())
        reference = Policy(frozen.eval().requires_grad_(False), tokenizer)
    if config.model.gradient_checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return Learner(Policy(model, tokenizer), reference, config)


def clock(device: str) -> float:
    """The time in seconds: wall time after synchronizing the GPU, or CPU time of this process."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def score(learner: Learner, trajectories: Sequence[Trajectory]) -> tuple[RolloutBatch, TokenStats]:
    """The batch and its token statistics, group by group as in a training step."""
    size, groups = len(trajectories) // (1 + max(t.group for t in trajectories)), []
    for start in range(0, len(trajectories), size):
        group = learner.make_batch(trajectories[start : start + size])
        groups.append((group, learner.compute_token_stats(group)))
    return join_groups(groups)


def learn(learner: Learner, batch: RolloutBatch, stats: TokenStats, step: int) -> dict[str, float]:
    """The rest of a training step: credit, selection, the update."""
    credit = make_algorithm(learner.config).credit(batch, stats)
    return learner.update(batch, stats, credit, world_model.select(batch, stats, learner.config, step), step)


def update(learner: Learner, trajectories: Sequence[Trajectory], step: int) -> tuple[float, float, float]:
    """Runs one whole update; returns the seconds of token statistics and of the rest, and the saturated share."""
    device = learner.policy.device.type
    start = clock(device)
    batch, stats = score(learner, trajectories)
    middle = clock(device)
    metrics = learn(learner, batch, stats, step)
    return middle - start, clock(device) - middle, metrics.get("wm/clipped_token_ratio", math.nan)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A confidence interval of at least 95 % for the median (the whole range if there are too few values)."""
    n, ordered = len(values), sorted(values)
    tail, k = 0.5**n, 0
    while tail + math.comb(n, k + 1) * 0.5**n <= 0.025:
        k += 1
        tail += math.comb(n, k) * 0.5**n
    return ordered[k], ordered[n - 1 - k]


# ------------------------------------------------------------------------------------------------ peak memory


def peak(payload, enabled: bool, shape: str, device: str, answer) -> None:
    """Sends the peak memory of one update in bytes; runs in a separate process."""
    trajectories, config, tokenizer = payload
    torch.set_num_threads(1)
    update(learner_of(config, tokenizer, enabled, shape, device), trajectories, 0)
    answer.send(peak_memory_bytes())


def measure_peak(payload, enabled: bool, args: argparse.Namespace, device: str) -> int:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=peak, args=(payload, enabled, args.shape, device, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


# -------------------------------------------------------------------------------------------------- breakdown


@contextlib.contextmanager
def timed_parts(spent: dict[str, float], device: str) -> Iterator[None]:
    """Adds up the seconds spent in the parts of an update, excluding the time of nested parts."""

    def wrap(part: str, function: Callable) -> Callable:
        def run(*args, **kwargs):
            start, before = clock(device), sum(spent.values())
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += clock(device) - start - (sum(spent.values()) - before)

        return run

    targets = (
        ("backbone forward", Policy, "hidden"), ("head and loss", kernels, "linear_paw_loss"),
        ("backward", torch.Tensor, "backward"), ("optimizer", optim.MasterAdamW, "step"),
        ("optimizer", optim.MasterAdamW, "clip_gradients"), ("tables and packing", packing, "pack"),
        ("tables and packing", learner_module, "build_tables"),
        ("metrics", UpdateMetrics, "add"), ("metrics", UpdateMetrics, "metrics"),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        for part, owner, name in targets:
            stack.enter_context(mock.patch.object(owner, name, wrap(part, getattr(owner, name))))
        yield


def parts_of(learner: Learner, trajectories: Sequence[Trajectory], device: str) -> dict[str, float]:
    """The seconds of each part of one whole update."""
    spent: dict[str, float] = defaultdict(float)
    start = clock(device)
    batch, stats = score(learner, trajectories)
    middle = clock(device)
    with timed_parts(spent, device):
        learn(learner, batch, stats, 0)
    spent["other"] = clock(device) - middle - sum(spent.values())
    return {"token statistics": middle - start, **spent}


# ------------------------------------------------------------------------------------------------ the table


def measure(name: str, layout: str, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """All measurements of one environment in one layout."""
    all_of_them, *rest = batch_of(name, layout, args)
    trajectories = [t for t in all_of_them if t.group < args.groups]
    payload = (trajectories, *rest)
    # One learner for both: a second one would have another memory layout, which alone can make a difference of 1 %.
    learner = learner_of(*payload[1:], True, args.shape, device, trajectories, args.fit)
    configs = [with_paw(learner.config, enabled) for enabled in (False, True)]
    update(learner, trajectories, 0)  # warm-up
    times: list[list[tuple[float, float, float]]] = [[], []]
    for turn in range(2 * args.repeats + 1):
        learner.config = configs[turn % 2]
        times[turn % 2].append(update(learner, trajectories, turn))
    off, on = ([[sum(t[:2]) for t in side], [t[1] for t in side]] for side in times)
    ratios, of_update = (
        [x / ((before + after) / 2) - 1 for before, x, after in zip(a, b, a[1:], strict=False)]
        for a, b in zip(off, on, strict=True)
    )
    noise = [after / before - 1 for before, after in itertools.pairwise(off[0])]
    parts: list[list[dict[str, float]]] = [[], []]
    for _ in range(args.breakdowns):
        for which in (0, 1):
            learner.config = configs[which]
            parts[which].append(parts_of(learner, trajectories, device))
    least = [{part: min(one.get(part, 0.0) for one in side) for part in PARTS} for side in parts] if parts[0] else []
    selected = select_transitions(score(learner, trajectories)[1].entropies, learner.config.paw.alpha)
    work = work_of(learner, trajectories, learner.policy.model.config, selected)
    counted = work_of(learner, all_of_them, learner.policy.model.config)
    large = work_of(learner, all_of_them, transformers.Qwen2Config(**QWEN_1_5B))
    del learner
    if device == "cuda":
        torch.cuda.empty_cache()  # leaves the memory to the processes whose peak is measured
    return {
        "env": name, "layout": layout, "off_s": [statistics.median(t[i] for t in times[0]) for i in (0, 1)],
        "on_s": [statistics.median(t[i] for t in times[1]) for i in (0, 1)],
        "overhead": statistics.median(ratios), "interval": interval(ratios),
        "saturated": statistics.mean(t[2] for t in times[1]),
        "overhead_of_update": statistics.median(of_update), "interval_of_update": interval(of_update),
        "peak_bytes": [measure_peak(payload, enabled, args, device) for enabled in (False, True)],
        **dataclasses.asdict(work),
        "counted": dataclasses.asdict(counted), "counted_1.5b": dataclasses.asdict(large),
        "parts_s": least, "ratios": ratios, "noise": noise, "lengths": mean_lengths(all_of_them),
    }  # fmt: skip


def table_row(r: dict[str, Any]) -> str:
    peaks = [p / 1e6 for p in r["peak_bytes"]]
    lengths = " / ".join(f"{r['lengths'][k]:.0f}" for k in ("prompt", "action", "observation"))
    span = lambda ends: f"{ends[0]:+.1%} to {ends[1]:+.1%}"  # noqa: E731
    return (
        f"| {r['env']} | {r['layout']} | {lengths} | {sum(r['off_s']):.2f} ({r['off_s'][0]:.2f} + "
        f"{r['off_s'][1]:.2f}) | {sum(r['on_s']):.2f} | **{r['overhead']:+.1%}** ({span(r['interval'])}) | "
        f"{statistics.median(map(abs, r['noise'])):.1%} | {r['saturated']:.0%} | {r['floor']:+.1%} | "
        f"{r['overhead_of_update']:+.1%} | {r['floor_of_update']:+.1%} | {peaks[0]:.0f} | {peaks[1]:.0f} | "
        f"{r['counted']['floor']:+.1%} | {r['counted_1.5b']['floor']:+.1%} |"
    )


def parts_row(r: dict[str, Any]) -> str:
    """The time that each part adds, as a share of the whole update with PaW off."""
    off, on = r["parts_s"]
    whole = sum(off.values())
    return f"| {r['env']} | {r['layout']} | " + " | ".join(f"{(on[p] - off[p]) / whole:+.2%}" for p in PARTS) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the test data")
    parser.add_argument("--env", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--layout", nargs="+", default=["window", "trajectory"])
    parser.add_argument("--shape", choices=["tiny", "qwen2.5-1.5b"], default="tiny")
    parser.add_argument("--groups", type=int, default=1, help="groups in the timed update")
    parser.add_argument(
        "--count-groups", type=int, default=8, help="groups whose tokens are counted, including the timed ones"
    )
    parser.add_argument("--group-size", type=int, default=2)
    parser.add_argument("--thought", nargs=2, type=int, default=(30, 90), help="minimum and maximum tokens per thought")
    parser.add_argument("--token-budget", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=7, help="updates with PaW on, each between two with it off")
    parser.add_argument("--breakdowns", type=int, default=3, help="additional pairs of updates whose parts are timed")
    parser.add_argument("--fit", type=int, default=0, help="epochs of training on the episodes first (tiny model only)")
    parser.add_argument("--out", type=Path, help="folder for overhead.json and overhead.md")
    args = parser.parse_args()
    if args.fit and args.shape != "tiny":
        parser.error("--fit needs --shape tiny: it uses the learning rate of the tiny model's warm start")
    os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp(prefix="paw-fast-"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    about = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    lines = [
        f"{args.shape}, {about}, {torch.get_num_threads()} threads, {args.groups} x {args.group_size} episodes, "
        f"{args.repeats} repeats, thoughts of {args.thought[0]} to {args.thought[1]} tokens", "",
        "| environment | layout | prompt / action / observation tokens | off, s (token statistics + update) | on, s | "
        "overhead (95 %) | noise | saturated | floor | of the update alone | floor | peak off, MB | on, MB | "
        "floor, all episodes | 1.5B |",
        "| --- " * 15 + "|",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    results = []
    for name in args.env:
        for layout in args.layout:
            results.append(measure(name, layout, args, device))
            lines.append(table_row(results[-1]))
            print(lines[-1], flush=True)
            write(args.out, lines, results)


def write(folder: Path | None, lines: Sequence[str], results: Sequence[dict[str, Any]]) -> None:
    """Writes the tables so far and the measurements behind them."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    parts = [] if not results[0]["parts_s"] else [
        "", "Added by each part, as a share of the whole update with PaW off:", "",
        "| environment | layout | " + " | ".join(PARTS) + " |", "| --- " * (2 + len(PARTS)) + "|",
        *map(parts_row, results),
    ]  # fmt: skip
    (folder / "overhead.md").write_text("\n".join([*lines, *parts]) + "\n")
    (folder / "overhead.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
