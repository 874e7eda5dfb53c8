"""Ops (a) and (b) on the CPU under pytest-benchmark, one case at a time: `pytest --benchmark`.

For ratios to torch use `python bench/gpu/acceptance.py --device cpu`, which interleaves the
peers. GB/s counts the minimal bytes: one read of the logits for (a), one read and one write for (b).
"""

from __future__ import annotations

import pytest
import torch

from paw_fast import kernels as K

ROWS = 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", [32000, 151936])
@pytest.mark.parametrize("op", ["token_logprobs", "paw_loss"])
def test_cpu(benchmark, op, vocab, dtype):
    logits = torch.randn(ROWS, vocab).to(dtype)
    targets = torch.randint(0, vocab, (ROWS,))
    rows = K.LossRows(
        targets,
        torch.ones(ROWS, dtype=torch.uint8),
        torch.ones(ROWS),
        K.token_logprobs(logits, targets).logprobs,
        torch.ones(ROWS),
    )
    settings = K.LossSettings()
    if op == "token_logprobs":
        benchmark.pedantic(lambda: K.token_logprobs(logits, targets), rounds=10, warmup_rounds=2)
    else:
        benchmark.pedantic(
            lambda x: K.paw_loss(x, rows, settings), setup=lambda: ((logits.clone(),), {}), rounds=10, warmup_rounds=2
        )
    num_bytes = logits.numel() * logits.element_size() * (1 if op == "token_logprobs" else 2)
    benchmark.extra_info["gb_per_s"] = num_bytes / benchmark.stats["median"] / 1e9
