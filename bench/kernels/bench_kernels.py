"""Every op on the CPU under pytest-benchmark, one case at a time: `pytest --benchmark`.

For ratios to torch use `python bench/gpu/acceptance.py --device cpu`, which interleaves the peers. GB/s counts the
minimal bytes: one read of the logits for (a), one read and one write for (b) and (b'). GFLOP/s: 6 N H V for (c).
"""

from __future__ import annotations

import pytest
import torch

from paw_fast import kernels as K

ROWS = 64
CASES = [(v, d) for v in (32000, 151936) for d in (torch.float32, torch.bfloat16)]
SETTINGS = K.LossSettings()


def make(vocab: int, dtype: torch.dtype) -> tuple[torch.Tensor, K.LossRows]:
    logits = torch.randn(ROWS, vocab).to(dtype)
    targets = torch.randint(0, vocab, (ROWS,))
    old = K.token_logprobs(logits, targets).logprobs
    return logits, K.LossRows(targets, torch.ones(ROWS, dtype=torch.uint8), torch.ones(ROWS), old, torch.ones(ROWS))


def rate(benchmark, name: str, amount: float) -> None:
    """Adds amount / median to the report; there is no median under `--benchmark-disable`."""
    if benchmark.stats is not None:
        benchmark.extra_info[name] = amount / benchmark.stats["median"] / 1e9


@pytest.mark.parametrize(("vocab", "dtype"), CASES, ids=str)
def test_token_logprobs(benchmark, vocab, dtype):
    logits, rows = make(vocab, dtype)
    benchmark.pedantic(lambda: K.token_logprobs(logits, rows.targets), rounds=10, warmup_rounds=2)
    rate(benchmark, "gb_per_s", logits.numel() * logits.element_size())


@pytest.mark.parametrize(("vocab", "dtype"), CASES, ids=str)
def test_backward_in_place(benchmark, vocab, dtype):
    logits, rows = make(vocab, dtype)
    out = K.token_logprobs(logits, rows.targets)
    ones = torch.ones(ROWS)
    arguments = (rows.targets, *out, ones, ones, None, 1.0, 0.0, vocab)
    benchmark.pedantic(
        lambda x: torch.ops.paw_fast.token_logprobs_backward_(x, *arguments),
        setup=lambda: ((logits.clone(),), {}), rounds=10, warmup_rounds=2,
    )  # fmt: skip
    rate(benchmark, "gb_per_s", 2 * logits.numel() * logits.element_size())


@pytest.mark.parametrize(("vocab", "dtype"), CASES, ids=str)
def test_paw_loss(benchmark, vocab, dtype):
    logits, rows = make(vocab, dtype)
    benchmark.pedantic(
        lambda x: K.paw_loss(x, rows, SETTINGS), setup=lambda: ((logits.clone(),), {}), rounds=10, warmup_rounds=2
    )
    rate(benchmark, "gb_per_s", 2 * logits.numel() * logits.element_size())


@pytest.mark.parametrize(("hidden", "vocab"), [(256, 1024), (576, 49152)])
def test_linear_paw_loss(benchmark, hidden, vocab):
    _, rows = make(vocab, torch.float32)
    x, w = torch.randn(ROWS, hidden, requires_grad=True), torch.randn(vocab, hidden, requires_grad=True)

    def step() -> None:
        x.grad = w.grad = None
        K.linear_paw_loss(x, w, rows, SETTINGS).loss.backward()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
    rate(benchmark, "gflop_per_s", 6 * ROWS * hidden * vocab)


def test_select_transitions(benchmark):
    offsets = torch.arange(0, 20 * 5000 + 1, 20)
    entropies, lambdas = torch.rand(20 * 5000), torch.rand(5000)
    benchmark(lambda: K.select_transitions(entropies, offsets, offsets, lambdas, 0.75, 20 * 5000))
