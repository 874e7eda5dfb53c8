"""Measures op (d), select_transitions, beside a sort in torch and beside the loss of as many tokens."""

from __future__ import annotations

import torch

from paw_fast import kernels as K


def test_select_transitions(benchmark):
    offsets = torch.arange(0, 20 * 5000 + 1, 20)
    entropies, lambdas = torch.rand(20 * 5000), torch.rand(5000)
    benchmark(lambda: K.select_transitions(entropies, offsets, offsets, lambdas, 0.75, 20 * 5000))
