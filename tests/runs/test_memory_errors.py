"""Lack of memory is recognized by what Python, numpy and torch really raise."""

import errno

import numpy as np
import pytest
import torch

from paw_fast.runs.atomic_files import exit_code_of
from paw_fast.runs.memory_errors import describe_out_of_memory


@pytest.mark.parametrize(
    ("allocate", "words"),
    [
        (lambda: torch.empty(1 << 50), "out of memory on the CPU (tried to allocate 4503599627370496 bytes)"),
        (lambda: np.empty(1 << 56, np.uint8), "out of memory on the CPU"),
        (lambda: bytearray(1 << 60), "out of memory on the CPU"),
    ],
)
def test_a_real_allocation_that_fails_is_one_line(allocate, words, capsys):
    with pytest.raises((MemoryError, RuntimeError)) as error:
        allocate()
    assert describe_out_of_memory(error.value) == words
    assert exit_code_of(allocate) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words}: end other programs")


def test_what_torch_says_of_a_gpu():
    """The texts of torch 2.13's allocator and of cuBLAS."""
    text = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which ..."
    assert describe_out_of_memory(torch.OutOfMemoryError(text)) == (
        "out of memory on the GPU (tried to allocate 20.00 GiB)"
    )
    cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert describe_out_of_memory(cublas) == "out of memory on the GPU"


def test_what_the_operating_system_says(capsys):
    def fork():
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    assert exit_code_of(fork) == 2
    assert capsys.readouterr().err.startswith("error: out of memory on the CPU: end other programs")


def test_other_errors_are_none_of_it():
    for error in (RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory"), KeyError("x")):
        assert describe_out_of_memory(error) is None
    with pytest.raises(RuntimeError, match="a bug"):
        exit_code_of(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_allocation_on_a_gpu():
    with pytest.raises(torch.OutOfMemoryError) as error:
        torch.empty(1 << 50, device="cuda")
    assert str(describe_out_of_memory(error.value)).startswith("out of memory on the GPU (tried to allocate ")
