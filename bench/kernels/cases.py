"""Shared by the benches of the ops: inputs, and rates for the report. One bench an op: bench_<op>.py.

    pytest --benchmark bench/kernels

GB/s counts the minimal bytes: one read of the logits, and one write where there is a gradient. `share` is that
over the read or copy rate of the same run: `amax` and `copy_` of torch, on as many threads, right after the case.
GFLOP/s counts 6 N H V. `python bench/gpu/acceptance.py --device cpu` gives ratios to torch and other libraries,
interleaved.
"""

from __future__ import annotations

import statistics
import time
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


def memory_rate(kind: str) -> float:
    """Bytes per second that torch reads ("read": amax) or reads and writes ("copy") of 256 MB, median of seven."""
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    call = source.amax if kind == "read" else lambda: target.copy_(source)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return source.numel() * 4 * (1 if kind == "read" else 2) / statistics.median(times[2:])


def bandwidth(benchmark: Any, num_bytes: int, kind: str) -> None:
    """Adds GB/s and its share of the run's read or copy rate to the report."""
    if benchmark.stats is not None:
        rate(benchmark, "gb_per_s", num_bytes)
        benchmark.extra_info["share"] = num_bytes / benchmark.stats["median"] / memory_rate(kind)


def rate(benchmark: Any, name: str, amount: float) -> None:
    """Adds amount / median to the report; there is no median under `--benchmark-disable`."""
    if benchmark.stats is not None:
        benchmark.extra_info[name] = amount / benchmark.stats["median"] / 1e9
