"""Computes the bytes that token_logprobs and paw_loss move, their time at a bandwidth, and how rows are divided.

    python bench/kernels/traffic_table.py [--rows 8192] [--gb-per-s 3350] [--out bench/results/traffic.md]

Nothing is measured here: the plans come from csrc/common/row_plan.h through the extension, the times from bytes over
bandwidth (3350 GB/s is the data sheet of an H100 SXM; a copy reaches less). `bench/gpu/acceptance.py` measures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paw_fast.kernels import native

CASES = [(v, 2) for v in (32000, 49152, 128256, 151936, 262144)] + [(151936, 4), (262144, 4)]
SHARED = {"sm_80": (163 << 10, 164 << 10), "sm_86, sm_89": (99 << 10, 100 << 10), "sm_90": (227 << 10, 228 << 10)}
THREADS, UNIT, SCRATCH, RESERVED = 512, 8, 256, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--gb-per-s", type=float, default=3350.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    extension = native._native
    if extension is None:
        raise SystemExit("the compiled extension is missing: install the package")
    lines = [
        f"{args.rows} rows, {args.gb_per_s:.0f} GB/s. ms: at that rate / at the target's share of it (95 %, 92 %).",
        "`cluster`: paw_loss on sm_90: blocks a row, KB a block, blocks a multiprocessor by its memory (registers: 3).",
        "`kept`: paw_loss elsewhere: the share of a row that stays in shared memory and is not read twice.",
        "",
        "| V | bytes | token_logprobs GB | ms | paw_loss GB | ms | cluster | kept on sm_80 | kept on sm_86, sm_89 |",
        "|" + " --- |" * 9,
    ]
    for vocab, size in CASES:
        gigabytes = args.rows * vocab * size / 1e9
        ms = gigabytes / args.gb_per_s * 1e3
        plan = extension.row_plan(vocab, size, *SHARED["sm_90"], 0)
        blocks = SHARED["sm_90"][1] // (plan["shared_bytes"] + RESERVED)
        kept = [
            min(1.0, extension.kept_elements(vocab, size, THREADS * UNIT, SCRATCH, *SHARED[name]) / vocab)
            for name in ("sm_80", "sm_86, sm_89")
        ]
        lines.append(
            f"| {vocab} | {size} | {gigabytes:.2f} | {ms:.2f} / {ms / 0.95:.2f} | {2 * gigabytes:.2f} "
            f"| {2 * ms:.2f} / {2 * ms / 0.92:.2f} "
            f"| {len(plan['blocks'])}, {plan['shared_bytes'] / 1024:.1f}, {blocks} "
            f"| {kept[0]:.0%} | {kept[1]:.0%} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
