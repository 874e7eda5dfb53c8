"""Measures select_transitions, from 10 to 10 million transitions, beside a stable sort in torch.

`share_of_paw_loss`: its time over that of paw_loss on as many rows as there are action tokens, at V = 32000 in fp32,
extrapolated from 64 rows.
"""

from __future__ import annotations

import time

import pytest
import torch

from paw_fast import kernels as K
from paw_fast.kernels import reference

from .cases import ROWS, SETTINGS, make

# Action and observation tokens a transition; fewer of them where there are millions, to stay below 1 GB.
SIZES = [(10, 20), (1_000, 20), (100_000, 20), (10_000_000, 2)]


def arguments(num: int, tokens: int) -> tuple[torch.Tensor, ...]:
    offsets = torch.arange(0, tokens * num + 1, tokens)
    return torch.rand(tokens * num), offsets, offsets, torch.rand(num)


def seconds_per_row() -> float:
    logits, rows = make(32000, torch.float32)
    times = []
    for _ in range(10):
        mine = logits.clone()
        start = time.perf_counter()
        K.paw_loss(mine, rows, SETTINGS)
        times.append(time.perf_counter() - start)
    return min(times) / ROWS


@pytest.mark.parametrize(("num", "tokens"), SIZES)
def test_select_transitions(benchmark, num, tokens):
    args = arguments(num, tokens)
    benchmark.pedantic(
        lambda: K.select_transitions(*args, 0.75, tokens * num), rounds=5 if num > 1_000_000 else 30, warmup_rounds=1
    )
    if benchmark.stats is not None:
        benchmark.extra_info["share_of_paw_loss"] = benchmark.stats["median"] / (seconds_per_row() * num * tokens)


@pytest.mark.parametrize(("num", "tokens"), SIZES)
def test_stable_sort_in_torch(benchmark, num, tokens):
    args = arguments(num, tokens)
    benchmark.pedantic(
        lambda: reference.select_transitions_reference(*args, 0.75),
        rounds=3 if num > 1_000_000 else 20,
        warmup_rounds=1,
    )
