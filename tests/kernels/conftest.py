"""Fixtures of the kernel tests: all instruction sets of this machine, and a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from paw_fast.kernels import native

settings.register_profile(
    "kernels", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("kernels")

ISAS = native._native.cpu_isas() if native._native else ["missing"]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each instruction set of this machine."""
    before = native._native.cpu_isa()
    native.use_cpu_isa(request.param)
    yield request.param
    native.use_cpu_isa(before)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(1234)
