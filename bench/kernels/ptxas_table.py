"""Compiles every CUDA source for every architecture and prints each kernel's registers, as a Markdown table.

    python bench/kernels/ptxas_table.py [--archs 80 86 89 90a] [--out bench/results/ptxas.md]

Beside them stack, spilled bytes and static shared memory where ptxas reports any; the dynamic part is chosen at launch
(csrc/common/row_plan.h). A kernel of 4 registers is empty: it needs clusters, which that architecture lacks.
Where cuobjdump is installed, also checks that the machine code has the instructions that the design relies on.
A warning, a spill or a missing instruction is an error (exit 1). Needs nvcc and c++filt.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "paw_loss_cluster.cu": {"UBLKCP": "bulk copy", "SYNCS": "mbarrier", "STG.E.128": "16-byte store"},
    "paw_loss.cu": {"LDG.E.NA.128": "16-byte load", "STG.E.128": "16-byte store"},
    "token_logprobs.cu": {"LDG.E.NA.128": "16-byte load", "MUFU.EX2": "exponential"},
}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def kernels_of(log: str) -> list[dict[str, str | int]]:
    """One record for each kernel that `ptxas -v` reports."""
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        name = run("c++filt", part.split("'")[0])
        numbers = {
            key: int(match[1]) if (match := re.search(pattern, part)) else 0
            for key, pattern in {
                "registers": r"Used (\d+) registers", "stack": r"(\d+) bytes stack", "stores": r"(\d+) bytes spill st",
                "loads": r"(\d+) bytes spill lo", "shared": r"(\d+) bytes smem",
            }.items()
        }  # fmt: skip
        short = re.search(r"(\w+_kernel)<?([^>]*)", name)
        assert short is not None, name
        flags = short[2].replace("(bool)1", "softcap").replace("(bool)0", "").replace("true", "softcap")
        found.append(
            {"kernel": short[1], "of": re.sub(r"\bfalse\b|paw::|\(anonymous namespace\)::", "", flags).strip(" ,")}
            | numbers
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["80", "86", "89", "90a"])
    parser.add_argument("--sources", nargs="+", default=sorted(p.name for p in (ROOT / "csrc").glob("*.cu")))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if shutil.which("nvcc") is None:
        raise SystemExit("nvcc is not on PATH")
    head = next(line for line in run("nvcc", "--version").splitlines() if "release" in line)
    table: dict[tuple[str, str, str], list[str]] = {}
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for source in args.sources:
            for arch in args.archs:
                binary = f"{folder}/{source}.{arch}.o"
                log = run(
                    "nvcc", "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-Xcompiler=-Wall", "-c",
                    str(ROOT / "csrc" / source), f"-gencode=arch=compute_{arch},code=sm_{arch}", "-o", binary,
                )  # fmt: skip
                if "warning" in log.lower():
                    problems.append(f"{source} sm_{arch}: a warning\n{log}")
                for k in kernels_of(log):
                    extra = {what: k[what] for what in ("stack", "stores", "loads", "shared") if k[what]}
                    if k["stores"] or k["loads"]:
                        problems.append(f"{source} sm_{arch} {k['kernel']} {k['of']}: spills")
                    key = (source, str(k["kernel"]), str(k["of"]))
                    table.setdefault(key, []).append(f"{k['registers']} {extra or ''}".strip())
                needs = EXPECTED.get(source, {})
                if shutil.which("cuobjdump") and not (source == "paw_loss_cluster.cu" and not arch.startswith("90")):
                    code = run("cuobjdump", "-sass", binary)
                    problems += [f"{source} sm_{arch}: no {what} ({i})" for i, what in needs.items() if i not in code]
                print(f"{source} sm_{arch}: done", file=sys.stderr, flush=True)
    lines = [f"{head.strip()}. Registers a thread; stack, spills and static shared memory where there are any.", ""]
    lines.append(f"| source | kernel | of | {' | '.join(f'sm_{a}' for a in args.archs)} |")
    lines.append("|" + " --- |" * (3 + len(args.archs)))
    lines += [f"| {' | '.join([*key, *registers])} |" for key, registers in table.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
