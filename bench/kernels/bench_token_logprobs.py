"""Measures token_logprobs, and its backward in place."""

from __future__ import annotations

import pytest
import torch

from paw_fast import kernels as K

from .cases import CASES, ROWS, bandwidth, make


@pytest.mark.parametrize(("vocab", "dtype"), CASES, ids=str)
def test_token_logprobs(benchmark, vocab, dtype):
    logits, rows = make(vocab, dtype)
    benchmark.pedantic(lambda: K.token_logprobs(logits, rows.targets), rounds=10, warmup_rounds=2)
    bandwidth(benchmark, logits.numel() * logits.element_size(), "read")


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
    bandwidth(benchmark, 2 * logits.numel() * logits.element_size(), "copy")
