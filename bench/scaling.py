"""Measures how time and memory of each stage grow: doubles one thing at a time, and fits the exponents.

    python bench/scaling.py                          # everything
    python bench/scaling.py --only packing report    # the stages with one of these words in their names
    python bench/scaling.py --out bench/results/cpu  # also writes scaling.md and scaling.json

Each measurement runs in a forked process of its own, on one thread. Its time is the CPU time of that process (least of
`--repeats`), which waits for a core do not change; its memory is what the peak of the resident set grows by, so stages
that stay within memory that the process has already show none. An exponent e is the slope of a least-squares line
through log(cost) against log(size): doubling the size multiplies the cost by 2^e. It is fitted to the upper half of the
sizes, where fixed costs matter less, and 0 where the cost stays below what can be measured (2 ms, 1 MB). `expected` is
the exponent of time that the stage's work has; what lies above it by more than 0.3 is marked.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from scaling_stages import CASES, Case

LEAST_S, LEAST_BYTES = 2e-3, 1_000_000
TOLERANCE = 0.3


def status_bytes(name: str) -> int:
    """A line of /proc/self/status in bytes, such as VmHWM, the peak of the resident set."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {name}")


def run_once(case: Case, size: int, answer: Any) -> None:
    """Sends CPU seconds and bytes of one run; the preparation does not count."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = case.prepare(size, Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from here
        before, start = status_bytes("VmRSS"), time.process_time()
        kept = work()
        seconds = time.process_time() - start
        answer.send((seconds, max(0, status_bytes("VmHWM") - before)))
        del kept


def measure(case: Case, size: int, repeats: int) -> tuple[float, int]:
    """The least CPU seconds and bytes of `repeats` runs, each in a process of its own."""
    context = multiprocessing.get_context("fork")
    found = []
    for _ in range(repeats):
        ours, theirs = context.Pipe()
        process = context.Process(target=run_once, args=(case, size, theirs))
        process.start()
        theirs.close()
        found.append(ours.recv())
        process.join()
    return min(s for s, _ in found), min(b for _, b in found)


def exponent(sizes: Sequence[int], costs: Sequence[float], least: float) -> float:
    """Slope of log(cost) over log(size) in the upper half of the sizes; 0 where the largest cost is below `least`."""
    if costs[-1] < least:
        return 0.0
    first = len(sizes) // 2 - (len(sizes) % 2 == 0)
    points = [(math.log(n), math.log(max(c, least / 10))) for n, c in zip(sizes[first:], costs[first:], strict=True)]
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def measure_case(case: Case, repeats: int) -> dict[str, Any]:
    found = [measure(case, size, repeats) for size in case.sizes]
    seconds, sizes = [s for s, _ in found], [float(b) for _, b in found]
    return {
        "stage": case.stage, "doubled": case.doubled, "sizes": list(case.sizes), "seconds": seconds, "bytes": sizes,
        "time_exponent": exponent(case.sizes, seconds, LEAST_S),
        "memory_exponent": exponent(case.sizes, sizes, LEAST_BYTES), "expected": case.expected, "why": case.why,
    }  # fmt: skip


def row(r: dict[str, Any]) -> str:
    mark = " **above**" if r["time_exponent"] > r["expected"] + TOLERANCE else ""
    return (
        f"| {r['stage']} | {r['doubled']} | {r['sizes'][0]:,} to {r['sizes'][-1]:,} | {1e3 * r['seconds'][-1]:,.0f} | "
        f"{r['time_exponent']:.2f}{mark} | {r['expected']:g} | {r['bytes'][-1] / 1e6:,.0f} | "
        f"{r['memory_exponent']:.2f} | {r['why']} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="words, one of which is in the stage's name")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for scaling.md and scaling.json")
    args = parser.parse_args()
    os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp(prefix="paw-fast-"))
    lines = [
        f"{platform.processor() or platform.machine()} CPU, one thread, CPU seconds, least of {args.repeats}", "",
        "| stage | doubled | sizes | ms at the largest | exponent of time | expected | MB at the largest | exponent of "
        "memory | what grows |",
        "| --- " * 9 + "|",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    results: list[dict[str, Any]] = []
    for case in (c for c in CASES if any(word in c.stage for word in args.only)):
        results.append(measure_case(case, args.repeats))
        lines.append(row(results[-1]))
        print(lines[-1], flush=True)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "scaling.md").write_text("\n".join(lines) + "\n")
            (args.out / "scaling.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
