"""Compares a whole GRPO loss and backward of TRL with paw-fast's: the same model, batch and loss, on the CPU.

    pip install trl
    python bench/peers/trl_update.py --out bench/results/cpu

TRL pads the batch to its longest prompt and completion and computes log-softmax and entropy of [B, C, V] logits
(`GRPOTrainer._compute_loss`, loss type `bnpo`, the mean over tokens, as trained with PyTorch's attention). paw-fast
packs the sequences and computes LM head and loss in chunks (`packing`, `forward_backward.backward`). Both get the same
old log-probs, and both results are compared first: the largest difference of a gradient stands in the table.

Lengths are drawn once: prompts of 150 to 600 tokens, completions of 20 to 200, most of them short, as thoughts are.
Runs of the two alternate. Times are CPU seconds of the process on one thread (median; in brackets the range); the ratio
is the median of the ratios of neighbours. Peaks are what one forward and backward adds to the resident set, each in a
process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from datasets import Dataset
from scaling import status_bytes
from trl import GRPOConfig, GRPOTrainer

from paw_fast.algorithms.base import Credit
from paw_fast.kernels import LossSettings
from paw_fast.learner import packing
from paw_fast.learner.forward_backward import backward, rows_per_chunk
from paw_fast.learner.loss_rows import build_tables
from paw_fast.models.packed_attention import ATTENTION_NAME
from paw_fast.models.policy import Policy
from paw_fast.types import Span, TokenSequence, TokenStats

Update = Callable[[], float]


def build_model(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=args.vocab, hidden_size=args.hidden, intermediate_size=4 * args.hidden,
            num_hidden_layers=args.layers, num_attention_heads=args.hidden // 64, num_key_value_heads=1,
            max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        )
    ).train()  # fmt: skip


def draw_batch(args: argparse.Namespace) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each sequence."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(150, 601, args.sequences)
    completions = 20 + (180 * rng.beta(1, 2, args.sequences)).astype(int)
    return [
        tuple(rng.integers(2, args.vocab, n).tolist() for n in pair)
        for pair in zip(prompts, completions, strict=True)
    ]  # fmt: skip


def padded(sequences: Sequence[Sequence[Any]], left: bool, dtype: torch.dtype) -> torch.Tensor:
    width = max(map(len, sequences))
    rows = [[0] * (width - len(s)) + list(s) if left else list(s) + [0] * (width - len(s)) for s in sequences]
    return torch.tensor(rows, dtype=dtype)


def make_trl(args: argparse.Namespace, model: Any, batch: Any, old: list[np.ndarray], advantages: Any) -> Update:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(), pad_token="[PAD]", eos_token="[EOS]", padding_side="left"
    )
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.0,
        loss_type="bnpo", per_device_train_batch_size=args.sequences, num_generations=2, report_to="none",
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": "a"}] * args.sequences)
    trainer: Any = GRPOTrainer(
        model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=settings, train_dataset=data,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    prompts, completions = zip(*batch, strict=True)
    inputs = {
        "prompt_ids": padded(prompts, True, torch.int64),
        "prompt_mask": padded([[1] * len(p) for p in prompts], True, torch.int64),
        "completion_ids": padded(completions, False, torch.int64),
        "completion_mask": padded([[1] * len(c) for c in completions], False, torch.int64),
        "old_per_token_logps": padded([o.tolist() for o in old], False, torch.float32),
        "advantages": torch.from_numpy(advantages),
        "num_items_in_batch": torch.tensor(sum(map(len, completions))),
    }

    def run() -> float:
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        return float(loss.detach())

    return run


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"[PAD]": 0, "[EOS]": 1, "a": 2}, unk_token="a"))


def make_ours(args: argparse.Namespace, model: Any, batch: Any, old: list[np.ndarray], advantages: Any) -> Update:
    model.set_attn_implementation(ATTENTION_NAME)
    policy = Policy(model, None)
    sequences = [
        TokenSequence(i, (*p, *c), (Span(i, (len(p), len(p) + len(c)), (), ()),)) for i, (p, c) in enumerate(batch)
    ]
    values = [np.full(len(o), a, np.float32) for o, a in zip(old, advantages, strict=True)]
    credit, stats = Credit(values, np.ones(len(batch), dtype=bool)), TokenStats(old, None, None, [])
    chunk = rows_per_chunk(policy, args.logits_mb << 20)

    def run() -> float:
        tables, loss = build_tables(sequences, stats, credit, None), 0.0
        for members in packing.plan_micro_batches([packing.input_length(t) for t in tables], args.token_budget):
            packed = packing.pack(sequences, tables, members, policy.device)
            loss += float(backward(policy, packed, LossSettings(), chunk).losses.double().sum())
        return loss

    return run


MAKERS = {"TRL": make_trl, "paw-fast": make_ours}


def prepare(name: str, args: argparse.Namespace) -> tuple[Any, Update]:
    batch, model, rng = draw_batch(args), build_model(args), np.random.default_rng(1)
    old = [np.full(len(c), -np.log(args.vocab)) + rng.normal(0, 0.1, len(c)) for _, c in batch]
    advantages = rng.normal(size=len(batch)).astype(np.float32)
    return model, MAKERS[name](args, model, batch, [o.astype(np.float32) for o in old], advantages)


def send_peak(name: str, args: argparse.Namespace, answer: Any) -> None:
    torch.set_num_threads(1)
    _, update = prepare(name, args)
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from here
    before = status_bytes("VmRSS")
    update()
    answer.send(status_bytes("VmHWM") - before)


def peak_bytes(name: str, args: argparse.Namespace) -> int:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=send_peak, args=(name, args, theirs))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("sequences", 8), ("vocab", 32000), ("hidden", 256), ("layers", 4), ("repeats", 3), ("token-budget", 4096),
        ("logits-mb", 64),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="folder for trl_update.md and trl_update.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sides = {name: prepare(name, args) for name in MAKERS}
    losses = {name: update() for name, (_, update) in sides.items()}
    pairs = list(zip(*(model.named_parameters() for model, _ in sides.values()), strict=True))
    worst = max(float((a.grad - b.grad).abs().max()) for (_, a), (_, b) in pairs)
    largest = max(float(a.grad.abs().max()) for (_, a), _ in pairs)
    seconds: dict[str, list[float]] = {name: [] for name in MAKERS}
    for _ in range(args.repeats):
        for name, (model, update) in sides.items():
            model.zero_grad()
            start = time.process_time()
            update()
            seconds[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    peaks = {name: peak_bytes(name, args) for name in MAKERS}
    lengths = [(len(p), len(c)) for p, c in draw_batch(args)]
    used, whole = sum(map(sum, lengths)), len(lengths) * sum(max(column) for column in zip(*lengths, strict=True))
    lines = [
        f"trl {importlib.metadata.version('trl')}, torch {torch.__version__}, {platform.machine()} CPU, one thread; "
        f"{args.layers} layers of width {args.hidden}, vocabulary {args.vocab}; {args.sequences} sequences, {used} "
        f"tokens, {whole} with padding",
        "", "| | CPU s of loss and backward | peak memory added, MB | loss |", "| --- | --- | --- | --- |",
        *(f"| {n} | {spread(seconds[n])} | {peaks[n] / 1e6:.0f} | {losses[n]:.6f} |" for n in MAKERS),
        "", f"Time of TRL over paw-fast: {spread(ratios)}. Largest gradient {largest:.3g}, largest difference "
        f"{worst:.1e}.",
    ]  # fmt: skip
    print("\n".join(lines))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "trl_update.md").write_text("\n".join(lines) + "\n")
        result = {"seconds": seconds, "peak_bytes": peaks, "losses": losses, "worst": worst, "lengths": lengths}
        (args.out / "trl_update.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
