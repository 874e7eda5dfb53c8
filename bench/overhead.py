"""What the world model costs: whole updates (scoring and optimizer steps) with PaW off and on, on real episodes.

    python bench/overhead.py --data ../shared/data --env alfworld webshop search        # tiny model, one CPU thread
    python bench/overhead.py --data ../shared/data --shape qwen2.5-1.5b --groups 16 --group-size 8       # on a GPU

Episodes are the searcher's, in the environments' own texts and prompts (template `verl`); an action is a thought of
30 to 90 tokens and the command. Tokens come from a BPE of 4,096 tokens that is trained on those texts. Off and on
alternate; times are medians, peak memory is measured in a process of its own for each. Writes a table in Markdown.

The breakdown counts what PaW adds: tokens that the backbone computes besides (the selected observations; none in
`trajectory`, but for the end of the last one), and rows of logits. `floor` is the share of multiplications that they
are, forward and backward: what no implementation that computes them all can go below.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from paw_fast import envs, packing, tiny
from paw_fast.attention import ATTENTION_NAME
from paw_fast.config import TrainConfig, load_preset
from paw_fast.envs import make
from paw_fast.metrics import peak_memory_bytes
from paw_fast.policy import Policy
from paw_fast.rollout.chat import ChatFormat
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.trajectories import build_sequences
from paw_fast.types import Trajectory
from paw_fast.update import Learner
from paw_fast.update.credit import Credit
from paw_fast.update.row_tables import WorldModelWeights, build_tables
from paw_fast.warm_start import as_trajectory, demonstrate

THOUGHT_TOKENS = (30, 90)
VOCAB = 4096


def settings_of(name: str, data: Path) -> dict:
    """Where an environment of the bench takes its data from."""
    if name == "webshop":
        return {"data": data / "webshop"}
    if name == "search":
        return {
            "train": [str(data / "qa" / "hotpotqa_train.json")],
            "corpus": data / "qa" / "hotpotqa_train_corpus.json",
        }
    return {"size": "full", "num_train": 64, "num_unseen": 8}


def demonstrations(name: str, data: Path, count: int, config: TrainConfig) -> list:
    """`count` episodes of the environment's searcher."""
    env = make(name, max_steps=config.env.max_steps, **settings_of(name, data))
    tasks = env.tasks("train")[: 4 * count]
    quiet = dataclasses.replace(config.warm_start, hesitation=0.0, hesitant_share=0.0, slips=0.0)
    kept = demonstrate(env, envs.searcher(name), tasks, quiet)[:count]
    env.close()
    if len(kept) < count:
        sys.exit(f"{name}: {len(kept)} episodes of the searcher won, {count} are needed")
    return kept


def with_thoughts(episode: Trajectory, layout: str, rng: np.random.Generator, group: int, vocab: int) -> Trajectory:
    """The episode with random tokens as a thought before each command."""
    turns, prompt = [], episode.transitions[0].prompt_ids
    for t in episode.transitions:
        thought = tuple(int(i) for i in rng.integers(5, vocab, int(rng.integers(*THOUGHT_TOKENS))))
        action = thought + t.action_ids
        before = prompt if layout == "trajectory" else t.prompt_ids
        turns.append(
            dataclasses.replace(t, prompt_ids=before, action_ids=action, rollout_logprobs=(0.0,) * len(action))
        )
        prompt = before + action + t.observation_ids
    reward = float(10 * rng.integers(0, 2))
    return dataclasses.replace(
        episode, group=group, transitions=tuple(turns), episode_return=reward, success_return=reward
    )


def model_of(shape: str, vocab: int, device: str) -> torch.nn.Module:
    """The tiny model, or one of Qwen2.5-1.5B's shape with random weights (bfloat16)."""
    if shape == "tiny":
        return tiny.build_model(vocab, max_positions=16384)
    config = transformers.Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=ATTENTION_NAME
        )


def batch_of(name: str, layout: str, args: argparse.Namespace) -> tuple[list[Trajectory], TrainConfig, object]:
    """Trajectories of a step, its config, and the tokenizer."""
    preset = load_preset("qwen2.5-1.5b", name)
    config = dataclasses.replace(
        preset, layout=layout, token_budget=args.token_budget,
        algo=dataclasses.replace(preset.algo, name="grpo", kl_coef=0.0, minibatches=1, minibatch_size=None),
        paw=dataclasses.replace(preset.paw, alpha=0.75),
    )  # fmt: skip
    demos = demonstrations(name, args.data, args.groups * args.group_size, config)
    texts = [first.text for first, _ in demos] + [after.text for _, turns in demos for _, after, _ in turns]
    template = PromptTemplate.load("verl", name)
    texts += [template.window(first, str(first.info.get("task", "")), [], 0) for first, _ in demos]
    tokenizer = tiny.train_tokenizer(texts, VOCAB)
    chat, rng = ChatFormat(tokenizer), np.random.default_rng(0)
    episodes = [as_trajectory(demo, chat, template, config) for demo in demos]
    return (
        [with_thoughts(t, layout, rng, i // args.group_size, len(tokenizer)) for i, t in enumerate(episodes)],
        config,
        tokenizer,
    )


def learner_of(config: TrainConfig, tokenizer, enabled: bool, shape: str, device: str) -> Learner:
    config = dataclasses.replace(config, paw=dataclasses.replace(config.paw, enabled=enabled))
    torch.manual_seed(0)
    model = model_of(shape, len(tokenizer), device).to(device)
    if config.model.gradient_checkpointing and device == "cuda":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Learner(Policy(model.train(), tokenizer), None, config)


def update(learner: Learner, trajectories: Sequence[Trajectory], step: int) -> tuple[float, float]:
    """Seconds of scoring and of the optimizer steps of one whole update."""
    device = learner.policy.device
    sequences = build_sequences(trajectories, learner.config.layout)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    scores = learner.score(sequences)
    wait()
    middle = time.perf_counter()
    learner.update(trajectories, sequences, scores, step)
    wait()
    return middle - start, time.perf_counter() - middle


def peak(payload, enabled: bool, shape: str, device: str, answer) -> None:
    """Peak memory of one update, in a process of its own."""
    trajectories, config, tokenizer = payload
    learner = learner_of(config, tokenizer, enabled, shape, device)
    update(learner, trajectories, 0)
    answer.send(peak_memory_bytes())


def measure_peak(payload, enabled: bool, args: argparse.Namespace, device: str) -> int:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=peak, args=(payload, enabled, args.shape, device, theirs)
    )
    process.start()
    found = ours.recv()
    process.join()
    return found


def breakdown(learner: Learner, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Tokens and rows that PaW adds to the update, and the share of multiplications that they are."""
    sequences = build_sequences(trajectories, learner.config.layout)
    turns = [t for episode in trajectories for t in episode.transitions]
    rng = np.random.default_rng(1)
    selected = np.zeros(len(turns), dtype=bool)
    selected[rng.permutation(len(turns))[: int(0.75 * len(turns))]] = True
    counts = [len(t.action_ids) for t in turns]
    none = [np.zeros(n) for n in counts]
    scores = learner.score(sequences[:1])
    scores = dataclasses.replace(scores, old_logprobs=none)
    credit = Credit([np.ones(n, np.float32) for n in counts], None, np.ones(len(trajectories), dtype=bool))
    tokens, rows = [], []
    for which in (np.zeros_like(selected), selected):
        tables = build_tables(sequences, scores, credit, WorldModelWeights(np.ones(len(trajectories)), which))
        tokens.append(sum(packing.input_length(t) for t in tables))
        rows.append(sum(len(t.positions) for t in tables))
    head = learner.policy.lm_head.weight.numel()
    body = learner.policy.num_parameters() - learner.policy.model.get_input_embeddings().weight.numel()
    # Scoring is a forward pass (one third of forward and backward) without the observations.
    scored = (body * tokens[0] + head * rows[0]) / 3
    off, on = (body * t + head * r for t, r in zip(tokens, rows, strict=True))
    return {
        "tokens": tokens[0], "more_tokens": tokens[1] / tokens[0] - 1, "rows": rows[0],
        "more_rows": rows[1] / rows[0] - 1, "floor": (on - off) / (scored + off),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the test data")
    parser.add_argument("--env", nargs="+", default=["alfworld", "webshop", "search"])
    parser.add_argument("--layout", nargs="+", default=["window", "trajectory"])
    parser.add_argument("--shape", choices=["tiny", "qwen2.5-1.5b"], default="tiny")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=2)
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for overhead.json and overhead.md")
    args = parser.parse_args()
    os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp(prefix="paw-fast-"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    lines = [
        f"{args.shape}, {about}, {torch.get_num_threads()} threads, {args.groups} x {args.group_size} episodes, "
        f"medians of {args.repeats}", "",
        "| environment | layout | off, s (score + update) | on, s | overhead | peak off, MB | peak on, MB | "
        "tokens | rows | floor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    results = []
    for name in args.env:
        for layout in args.layout:
            payload = batch_of(name, layout, args)
            learners = [learner_of(*payload[1:], enabled, args.shape, device) for enabled in (False, True)]
            times: list[list[tuple[float, float]]] = [[], []]
            for repeat in range(args.repeats + 1):
                for which, learner in enumerate(learners):
                    taken = update(learner, payload[0], repeat)
                    if repeat:  # the first of each warms up
                        times[which].append(taken)
            score, step = ([statistics.median(t[i] for t in one) for one in times] for i in (0, 1))
            whole = [statistics.median(sum(t) for t in one) for one in times]
            parts = breakdown(learners[1], payload[0])
            del learners
            peaks = [measure_peak(payload, enabled, args, device) for enabled in (False, True)]
            row = {"env": name, "layout": layout, "score_s": score, "update_s": step, "whole_s": whole,
                   "peak_bytes": peaks, **parts}  # fmt: skip
            results.append(row)
            lines.append(
                f"| {name} | {layout} | {whole[0]:.2f} ({score[0]:.2f} + {step[0]:.2f}) | {whole[1]:.2f} | "
                f"{whole[1] / whole[0] - 1:+.1%} | {peaks[0] / 1e6:.0f} | {peaks[1] / 1e6:.0f} | "
                f"{parts['more_tokens']:+.1%} | {parts['more_rows']:+.1%} | {parts['floor']:+.1%} |"
            )
            print(lines[-1], flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "overhead.md").write_text("\n".join(lines) + "\n")
        (args.out / "overhead.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
