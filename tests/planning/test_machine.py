"""Machines: cards by their names, and the RAM that a process may use."""

import pytest

from paw_fast.errors import UserError
from paw_fast.planning.machine import CARDS, GIB, find_card, measure_cpu, parse_gpus, ram, this_machine


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_found_by_its_name(name):
    machine = parse_gpus(f"2x{name}")
    assert (machine.card.name, machine.count) == (name, 2)
    assert machine.card.memory == int(CARDS[name].memory * 0.98)


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("H100", "H100-80GB", 1), ("8xa100", "A100-40GB", 8), ("1 x A100 80GB", "A100-80GB", 1),
        ("4xRTX 4090", "RTX4090-24GB", 4), ("l4", "L4-24GB", 1), ("L40S", "L40S-48GB", 1), ("2x24GB", "24GB", 2),
    ],
)  # fmt: skip
def test_names(text, name, count):
    machine = parse_gpus(text)
    assert (machine.card.name, machine.count, machine.kind) == (name, count, "cuda")


@pytest.mark.parametrize("text", ["", "x", "0xH100", "1x", "H101", "1x0GB", "1x99999GB", "H100-40GB", "--gpus"])
def test_mistakes(text):
    with pytest.raises(UserError, match="--gpus"):
        parse_gpus(text)


@pytest.mark.parametrize(
    ("name", "card"),
    [("NVIDIA H200", "H200-141GB"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA H100 PCIe", None), ("", None)],
)
def test_names_of_drivers(name, card):
    found = find_card(name)
    assert (found.name if found else None) == card


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = f"MemTotal: {32 << 20} kB\nMemFree: 1 kB\nMemAvailable: {20 << 20} kB\n"


def test_ram_without_limits(tmp_path):
    write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"})
    assert ram(tmp_path) == (32 * GIB, 20 * GIB)


def test_ram_in_a_container(tmp_path):
    group = "sys/fs/cgroup/jobs/a"
    write(tmp_path, {
        "proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/jobs/a\n", f"{group}/memory.max": "max\n",
        f"{group}/memory.current": "5\n", "sys/fs/cgroup/jobs/memory.max": f"{8 * GIB}\n",
        "sys/fs/cgroup/jobs/memory.current": f"{3 * GIB}\n",
    })  # fmt: skip
    assert ram(tmp_path) == (8 * GIB, 5 * GIB)


def test_ram_of_version_1(tmp_path):
    base = "sys/fs/cgroup/memory"
    write(tmp_path, {
        "proc/meminfo": MEMINFO, "proc/self/cgroup": "4:cpu,memory:/x\n3:pids:/x\n",
        f"{base}/memory.limit_in_bytes": f"{4 * GIB}\n", f"{base}/memory.usage_in_bytes": f"{GIB}\n",
    })  # fmt: skip
    assert ram(tmp_path) == (4 * GIB, 3 * GIB)


def test_this_cpu():
    machine = this_machine("cpu")
    assert machine.kind == "cpu"
    assert 0 <= machine.free <= machine.card.memory
    rates = measure_cpu(machine).card
    assert rates.flops > 0
    assert rates.read_rate > 0
