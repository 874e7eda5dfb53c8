"""Describes the machine that a run is planned for: a card by its name, this machine's GPU, or its RAM."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from paw_fast.errors import UserError

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Card:
    """One device. memory: bytes that programs can use. flops: dense bf16 operations a second, and read_rate: bytes a
    second, as its maker gives them; None where unknown."""

    name: str
    memory: int
    flops: float | None = None
    read_rate: float | None = None


_CARDS = (
    # Memory as nvidia-smi shows it, of whose driver a part stays; rates of NVIDIA's data sheets, without sparsity.
    Card("H100-80GB", 81559 * MIB, 989e12, 3.35e12),
    Card("H200-141GB", 143771 * MIB, 989e12, 4.8e12),
    Card("B200-180GB", 183359 * MIB, 2250e12, 7.7e12),
    Card("A100-40GB", 40960 * MIB, 312e12, 1.555e12),
    Card("A100-80GB", 81920 * MIB, 312e12, 2.039e12),
    Card("L40S-48GB", 46068 * MIB, 362e12, 0.864e12),
    Card("L4-24GB", 23034 * MIB, 121e12, 0.3e12),
    Card("RTX4090-24GB", 24564 * MIB, 165e12, 1.008e12),
    Card("RTX3090-24GB", 24576 * MIB, 71e12, 0.936e12),
)
CARDS = {card.name: card for card in _CARDS}
DRIVER_SHARE = 0.02
"""Assumption: this share of a named card's memory is not given to programs (an H100 of 79.6 GiB gives 79.1)."""


@dataclass(frozen=True)
class Machine:
    """The device that trains and the number of devices like it. Produced by `parse_gpus` and `this_machine`.

    kind: `cuda` or `cpu`. free: bytes that are free now, None for a machine that is only planned for.
    """

    kind: str
    card: Card
    count: int = 1
    free: int | None = None

    @property
    def words(self) -> str:
        return f"{self.count} x {self.card.name}" if self.kind == "cuda" else self.card.name


def parse_gpus(text: str) -> Machine:
    """The machine of `--gpus`: `1xH100-80GB`, `8xA100`, or by memory alone as in `2x24GB`. Raises `UserError`.

    >>> parse_gpus("2xH100-80GB").count, parse_gpus("1x24GB").card.memory
    (2, 24000000000)
    """
    match = re.fullmatch(r"\s*(?:(\d{1,4})\s*[xX*]\s*)?([A-Za-z0-9][\w. -]*?)\s*", text)
    count = int(match[1] or 1) if match else 0
    if not match or count < 1:
        raise UserError(f"--gpus {text!r}: expected a number and a card, as in 1xH100-80GB or 2x24GB")
    name = match[2]
    if size := re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:GB|G|gb|g)", name):
        memory = float(size[1])
        if not 1 <= memory <= 10000:
            raise UserError(f"--gpus {text!r}: a card of {size[1]} GB; expected 1 to 10000")
        return Machine("cuda", Card(f"{size[1]}GB", int(memory * 1e9)), count)
    card = find_card(name)
    if card is None:
        by_model = {one.partition("-")[0]: one for one in reversed(CARDS)} | {one: one for one in CARDS}
        near = [by_model[one] for one in difflib.get_close_matches(name.upper(), by_model, n=1)]
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(CARDS)};"
        raise UserError(f"--gpus {text!r}: no card of this name; {hint} others by their memory, as in 1x24GB")
    return Machine("cuda", Card(card.name, int(card.memory * (1 - DRIVER_SHARE)), card.flops, card.read_rate), count)


def find_card(name: str) -> Card | None:
    """The known card of a name: `H100`, `a100-40gb`, or as its driver calls it, `NVIDIA A100-SXM4-40GB`. A model with
    several sizes is the smallest one where the name gives none. PCIe and NVL cards have other rates and are not known.

    >>> find_card("NVIDIA H100 80GB HBM3").name, find_card("a100").name, find_card("NVIDIA GeForce RTX 4090").name
    ('H100-80GB', 'A100-40GB', 'RTX4090-24GB')
    """
    words = re.sub(r"RTX (?=\d)", "RTX", re.sub(r"[^A-Z0-9]+", " ", name.upper()).strip()).split()
    while words and words[0] in ("NVIDIA", "GEFORCE", "TESLA"):
        del words[0]
    if not words or not {"PCIE", "NVL"}.isdisjoint(words):
        return None
    given = next((word for word in words[1:] if re.fullmatch(r"\d+GB", word)), None)
    for card in sorted(_CARDS, key=lambda one: one.memory):
        model, _, size = card.name.partition("-")
        if words[0] == model and given in (None, size):
            return card
    return None


def measure_cpu(machine: Machine) -> Machine:
    """The same with this CPU's rates, measured in a tenth of a second: a product of float32 matrices and a copy."""
    import time

    import numpy as np

    def least_s(run: Callable[[], object], times: int = 3) -> float:
        found = []
        for _ in range(times):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
        return max(1e-9, min(found))

    square = np.ones((768, 768), dtype=np.float32)
    memory, target = np.ones(8 << 20, dtype=np.float32), np.empty(8 << 20, dtype=np.float32)
    flops = 2 * 768**3 / least_s(lambda: square @ square)
    moved = 2 * memory.nbytes / least_s(lambda: np.copyto(target, memory))
    return replace(machine, card=replace(machine.card, flops=flops, read_rate=moved))


# ------------------------------------------------------------------------------------------------ this machine


_DEVICE_FILES = ("nvidia*", "dxg", "kfd", "nvhost*", "nvmap")
"""What a GPU has in /dev: NVIDIA's driver, that of WSL, AMD's, and Tegra's."""


def device_files() -> Iterator[Path]:
    """The device files of GPUs. Where there are none, torch (seconds) need not be asked for a GPU."""
    for pattern in _DEVICE_FILES:
        yield from Path("/dev").glob(pattern)


def this_machine(device: str = "auto") -> Machine:
    """The device that `--model.device` trains on here: a GPU with its free memory, or the RAM that this process may
    use.

    Imports torch only where there is a GPU to ask about."""
    if device != "cpu" and (sys.platform != "linux" or "torch" in sys.modules or any(device_files())):
        import torch

        if torch.cuda.is_available():
            index = torch.device("cuda" if device == "auto" else device).index or 0
            name, (free, total) = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)
            known = find_card(name)
            rates = (known.flops, known.read_rate) if known else (None, None)
            return Machine("cuda", Card(name, total, *rates), torch.cuda.device_count(), free)
    limit, free = ram()
    return Machine("cpu", Card(f"this machine's RAM ({limit / GIB:.1f} GiB)", limit), 1, free)


def ram(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of RAM that this process may use, and those free now: the machine's, or less where a control group limits
    it (a container). `root` holds proc and sys."""
    total = free = 1 << 62
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemTotal":
                total = int(rest.split()[0]) * 1024
            elif name == "MemAvailable":
                free = int(rest.split()[0]) * 1024
    except OSError:
        import os

        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, used in _group_limits(root):
        total, free = min(total, limit), min(free, limit - used)
    return total, max(0, min(free, total))


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each control group with a memory limit that this process is in, versions 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / path.strip("/")
        # In a container the path may be the host's, and the group is mounted at the base.
        for group in (folder, *folder.parents):
            limit, used = (_read_bytes(group / name) for name in names)
            if limit is not None and limit < 1 << 60:
                yield limit, used or 0
            if group == base:
                break


def _read_bytes(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or "max"
        return None
