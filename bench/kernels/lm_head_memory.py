"""Measures the memory of LM head and loss, forward and backward: torch, TRL's chunked log-probs, and `linear_paw_loss`.

On the CPU, with what is installed: python bench/kernels/lm_head_memory.py. Half of the rows are policy rows, half
world-model rows; every form computes the same loss, and the largest difference of its gradients to torch's is printed.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from paw_fast import kernels
from paw_fast.kernels import POLICY, WORLD_MODEL, LossRows, LossSettings

TAU, CLIP, CHUNK_BYTES, VOCAB_TILE = 0.2, 0.2, 8 << 20, 4096


def peak_mb(run: Callable[[], None]) -> float:
    """By how much the resident memory of this process rises at most while `run` runs, in MiB (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the maximum
    before = _kilobytes("VmRSS")
    run()
    return (_kilobytes("VmHWM") - before) / 1024


def in_child(function: Callable[[], float]) -> float:
    """Calls a function in a forked child, so that memory which an earlier form has freed is not used again."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, repr(function()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return float(text)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def loss_of(logprobs: Tensor, rows: LossRows) -> Tensor:
    """The loss by plain torch, from the log-probs [N] of all rows."""
    ratio = (logprobs - rows.old_logprobs).exp()
    policy = -torch.minimum(rows.advantages * ratio, rows.advantages * ratio.clamp(1 - CLIP, 1 + CLIP))
    world_model = 1 - logprobs.exp().clamp(max=TAU)
    return (rows.weights * torch.where(rows.kinds == POLICY, policy, world_model)).sum()


def forms(hidden: Tensor, weight: Tensor, rows: LossRows) -> dict[str, Callable[[], None]]:
    """The forms that can run here. Each leaves its gradients in `hidden` and `weight`."""

    def by_torch() -> None:
        logits = (hidden @ weight.T).float()
        loss_of(logits.log_softmax(-1).gather(-1, rows.targets[:, None])[:, 0], rows).backward()

    def ours() -> None:
        settings = LossSettings(tau=TAU, clip_low=CLIP, clip_high=CLIP)
        kernels.linear_paw_loss(hidden, weight, rows, settings, chunk_bytes=CHUNK_BYTES).loss.backward()

    found = {"torch: whole logits": by_torch}
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        def by_trl() -> None:
            arguments = (hidden, weight, None, rows.targets, 1.0, VOCAB_TILE, None, 1.0, ("entropy",))
            loss_of(ChunkedLogProbFunction.apply(*arguments)[0], rows).backward()  # type: ignore[index]

        found["TRL: chunked log-probs"] = by_trl
    except ImportError as error:
        print(f"without TRL: {error}")
    found["paw-fast: linear_paw_loss"] = ours
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=32768)
    args = parser.parse_args()
    torch.manual_seed(0)
    num = args.rows
    hidden = torch.randn(num, args.hidden).requires_grad_()
    weight = (torch.randn(args.vocab, args.hidden) / args.hidden**0.5).requires_grad_()
    kinds = torch.tensor([POLICY, WORLD_MODEL], dtype=torch.uint8).repeat(num // 2 + 1)[:num]
    targets, weights = torch.randint(0, args.vocab, (num,)), torch.full((num,), 1 / num)
    targets[:8] %= 64  # of the small run that loads code
    old, advantages = torch.full((num,), -10.0), torch.randn(num)
    rows = LossRows(targets, kinds, weights, old, advantages)
    size = num * args.vocab * 4 / 2**20
    print(f"{num} rows, hidden size {args.hidden}, vocabulary {args.vocab}, float32: the logits take {size:.0f} MiB\n")
    print("| form | peak memory, MiB | largest difference of a gradient |\n| --- | --- | --- |")
    runs = forms(hidden, weight, rows)
    small = LossRows(*(column[:8] for column in (targets, kinds, weights, old, advantages)))
    first = forms(hidden[:8].detach().requires_grad_(), weight[:64].detach().requires_grad_(), small)

    def measured(name: str) -> float:
        first[name]()  # loads code
        return peak_mb(runs[name])

    peaks = {name: in_child(lambda name=name: measured(name)) for name in runs}
    expected: list[Tensor] = []
    for name, run in runs.items():
        hidden.grad = weight.grad = None
        run()
        assert hidden.grad is not None
        assert weight.grad is not None
        expected = expected or [hidden.grad.clone(), weight.grad.clone()]
        gap = max(float((a - b).abs().max()) for a, b in zip((hidden.grad, weight.grad), expected, strict=True))
        print(f"| {name} | {peaks[name]:.0f} | {gap:.1e} |", flush=True)


if __name__ == "__main__":
    main()
