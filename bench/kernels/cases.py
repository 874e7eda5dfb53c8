"""Shared by the benches of the ops: inputs, and rates for the report. One bench an op: bench_<op>.py.

    pytest --benchmark bench/kernels

GB/s counts the minimal bytes: one read of the logits for (a), one read and one write for (b) and (b'). GFLOP/s counts
6 N H V for (c). `python bench/gpu/acceptance.py --device cpu` gives ratios to torch and other libraries, interleaved.
"""

from __future__ import annotations

from typing import Any

import torch

from paw_fast import kernels as K

ROWS = 64
CASES = [(v, d) for v in (32000, 151936) for d in (torch.float32, torch.bfloat16)]
SETTINGS = K.LossSettings()


def make(vocab: int, dtype: torch.dtype) -> tuple[torch.Tensor, K.LossRows]:
    """Logits [ROWS, vocab], and policy rows whose old log-probs are those of the logits."""
    logits = torch.randn(ROWS, vocab).to(dtype)
    targets = torch.randint(0, vocab, (ROWS,))
    old = K.token_logprobs(logits, targets).logprobs
    return logits, K.LossRows(targets, torch.ones(ROWS, dtype=torch.uint8), torch.ones(ROWS), old, torch.ones(ROWS))


def rate(benchmark: Any, name: str, amount: float) -> None:
    """Adds amount / median to the report; there is no median under `--benchmark-disable`."""
    if benchmark.stats is not None:
        benchmark.extra_info[name] = amount / benchmark.stats["median"] / 1e9
