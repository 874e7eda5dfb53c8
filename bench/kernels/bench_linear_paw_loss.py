"""Measures linear_paw_loss, forward and backward."""

from __future__ import annotations

import pytest
import torch

from paw_fast import kernels as K

from .cases import ROWS, SETTINGS, make, rate


@pytest.mark.parametrize(("hidden", "vocab"), [(256, 1024), (576, 49152)])
def test_linear_paw_loss(benchmark, hidden, vocab):
    _, rows = make(vocab, torch.float32)
    x, w = torch.randn(ROWS, hidden, requires_grad=True), torch.randn(vocab, hidden, requires_grad=True)

    def step() -> None:
        x.grad = w.grad = None
        K.linear_paw_loss(x, w, rows, SETTINGS).loss.backward()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
    rate(benchmark, "gflop_per_s", 6 * ROWS * hidden * vocab)
