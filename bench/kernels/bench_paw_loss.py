"""Measures paw_loss."""

from __future__ import annotations

import pytest

from paw_fast import kernels as K

from .cases import CASES, SETTINGS, bandwidth, make


@pytest.mark.parametrize(("vocab", "dtype"), CASES, ids=str)
def test_paw_loss(benchmark, vocab, dtype):
    logits, rows = make(vocab, dtype)
    benchmark.pedantic(
        lambda x: K.paw_loss(x, rows, SETTINGS), setup=lambda: ((logits.clone(),), {}), rounds=10, warmup_rounds=2
    )
    bandwidth(benchmark, 2 * logits.numel() * logits.element_size(), "copy")
