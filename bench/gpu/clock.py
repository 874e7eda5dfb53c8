"""Times calls on a GPU or a CPU, and measures the memory rates that the ops are compared with."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

_SLEEP_CYCLES = 2_000_000  # a millisecond: longer than the host takes to launch anything here


class Clock:
    """Times one call in ms; on a GPU on a cold L2, and without the time the host takes to launch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush = torch.zeros(64 << 20, device=device) if device.type == "cuda" else None  # 256 MB

    def ms(self, call: Callable[[], object]) -> float:
        if self.flush is None:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.sum()
        torch.cuda._sleep(_SLEEP_CYCLES)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        if self.flush is not None:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return torch.cuda.max_memory_allocated() - before
        status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
        if not os.access(reset, os.W_OK):
            return None
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)  # what the allocator has kept would hide what the call takes

        def kilobytes(name: str) -> int:
            return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

        reset.write_text("5")  # the high-water mark starts again from here
        before = kilobytes("VmRSS:")
        call()
        return max(0, kilobytes("VmHWM:") - before) << 10


def rates(clock: Clock, rounds: int, quick: bool) -> dict[str, float]:
    """Bytes per second of a read (sum) and of a copy (bytes both ways) of a buffer that no cache holds."""
    source = torch.ones((1 << 22) if quick else (1 << 28), dtype=torch.float32, device=clock.device)
    target = torch.empty_like(source)
    out = {}
    for name, call, factor in (("read", lambda: source.sum(), 1), ("copy", lambda: target.copy_(source), 2)):
        times = [clock.ms(call) for _ in range(rounds + 3)][3:]
        out[name] = factor * source.numel() * 4 / (statistics.median(times) * 1e-3)
    return out


def data_sheet_rate(device: torch.device) -> float | None:
    """Bytes per second that the memory's clock and width allow; None where torch does not tell them."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    clock_khz, bits = getattr(properties, "memory_clock_rate", 0), getattr(properties, "memory_bus_width", 0)
    return 2.0 * clock_khz * 1e3 * bits / 8 or None  # two transfers a clock
