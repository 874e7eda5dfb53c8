"""Recognizes that memory has run out, on the CPU or a GPU, and says so in one line. Imports no torch."""

from __future__ import annotations

import errno
import re

_SIGNS = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|ALLOC_FAILED|std::bad_alloc"
    r"|unable to mmap|failed to allocate",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"tried to allocate ([\d.]+ ?(?:[KMGTP]i?B|bytes))", re.IGNORECASE)


def describe_out_of_memory(error: BaseException) -> str | None:
    """Says where memory ran out, as in "out of memory on the GPU (tried to allocate 2.00 GiB)"; None for other errors.

    Recognized are Python's and numpy's `MemoryError`, torch's `OutOfMemoryError` of a GPU, the `RuntimeError` that
    torch raises on the CPU, failed calls of CUDA libraries, and the operating system's ENOMEM.

    >>> describe_out_of_memory(MemoryError())
    'out of memory on the CPU'
    >>> describe_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."))
    'out of memory on the GPU (tried to allocate 2.00 GiB)'
    >>> describe_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    """
    text = str(error)
    on_gpu = re.search(r"CUDA|CUBLAS|CUDNN|HIP|NCCL|XPU", text) is not None
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    known = known or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not known and not (isinstance(error, RuntimeError) and _SIGNS.search(text)):
        return None
    amount = _AMOUNT.search(text)
    where = "GPU" if on_gpu else "CPU"
    return f"out of memory on the {where}" + (f" (tried to allocate {amount[1]})" if amount else "")
