"""The table of ops (csrc/ops.h) against the Python side, and arguments that do not fit an op's struct."""

from __future__ import annotations

import re
import types

import pytest
import torch

from paw_fast import kernels as K
from paw_fast.kernels import native

GOOD = {"matrix": torch.ones(2, 3), "dtype": 0, "rows": 2, "columns": 3, "stride": 3, "factor": torch.tensor([2.0])}


def scale(**changes):
    fields = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    native.call("paw_loss", "scale_inplace", torch.device("cpu"), fields)


def test_every_row_of_the_table_belongs_to_an_op():
    called = {kernel for kernels in native._kernels_of.values() for kernel in kernels}
    assert called == set(native._native.ops)
    assert set(K.OPS) == {"token_logprobs", "paw_loss", "linear_paw_loss", "select_transitions"}


def test_fields_are_read_by_name():
    matrix = torch.arange(6.0).view(2, 3)
    scale(matrix=matrix)
    assert matrix.tolist() == [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"stride": ...}, TypeError, "scale_inplace: argument stride is missing"),
        ({"strides": 3}, TypeError, "scale_inplace: there is no argument strides"),
        ({"rows": "two"}, TypeError, "int"),
        ({"rows": 1 << 70}, OverflowError, "int"),
        ({"matrix": 12345}, AttributeError, "data_ptr"),
        ({"matrix": None}, ValueError, "null pointer"),
        ({"stride": 2}, ValueError, "row stride 2 is less than the vocabulary 3"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        scale(**changes)


def test_an_extension_older_than_the_package_is_named(monkeypatch):
    class Older:
        ops = ("token_logprobs",)

    monkeypatch.setattr(native, "_native", Older())
    with pytest.raises(RuntimeError, match="older than this package and lacks paw_loss"):
        scale()


H100, A100, A10, B200, T4 = (9, 0), (8, 0), (8, 6), (10, 0), (7, 5)
DEFAULT_ARCHS = "80-real 90a-real 90-virtual"


@pytest.mark.parametrize(
    ("archs", "capability", "runtime", "driver", "message"),
    [
        (DEFAULT_ARCHS, H100, 13000, 13000, None),
        (DEFAULT_ARCHS, A10, 13000, 13000, None),  # machine code of 8.0
        (DEFAULT_ARCHS, B200, 13000, 13000, None),  # PTX of 9.0
        (DEFAULT_ARCHS, B200, 13010, 13000, "only PTX .* 13.1 needs a driver as new, but .* 13.0"),
        (DEFAULT_ARCHS, H100, 13010, 13000, None),  # the same major version
        (DEFAULT_ARCHS, H100, 13000, 12080, "CUDA 13.0, the driver supports up to 12.8: update the driver.*CUDA 12"),
        (DEFAULT_ARCHS, T4, 13000, 13000, "8.0 or newer, this device has 7.5"),
        ("90a-real", B200, 13000, 13000, "leaves out this device .*10.0.*PAW_FAST_CUDA_ARCHS=100"),
        ("90a-virtual", B200, 13000, 13000, "leaves out"),
        ("86-real", A100, 13000, 13000, "leaves out"),
        ("80", B200, 13000, 13000, None),
        ("100f-real", (10, 3), 13000, 13000, None),
        ("native", B200, 13000, 13000, None),
    ],
)  # fmt: skip
def test_which_device_runs_which_build(archs, capability, runtime, driver, message):
    got = native.cuda_mismatch(archs, capability, runtime, driver)
    assert got is None if message is None else re.search(message, got)


def test_the_doctor_hears_of_an_old_driver(monkeypatch):
    built = types.SimpleNamespace(
        ops=native._native.ops, cuda_compiled=True, cuda_archs=DEFAULT_ARCHS, cuda_versions=lambda: (13000, 12020)
    )
    monkeypatch.setattr(native, "_native", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H100)
    assert "the driver supports up to 12.2" in native.unavailable_reason("paw_loss", "cuda")
    built.cuda_versions = lambda: (13000, 13000)
    assert native.unavailable_reason("paw_loss", "cuda") is None
