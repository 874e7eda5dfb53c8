"""The table of ops (csrc/ops.h) against the Python side, and arguments that do not fit an op's struct."""

from __future__ import annotations

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
