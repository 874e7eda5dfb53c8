"""Counts the instructions that the CUDA kernels execute for an element of the logits, without a GPU.

    python bench/kernels/instruction_counts.py [--out bench/results/instructions.md] [--objects FOLDER]

Compiles for sm_90a (or takes FOLDER/<source>.cubin), disassembles, and follows the first thread of every warp of a row
through the machine code (sass.py). A count is that of all warps of the row, times 32, over V. The kernels are bound by
it on an H100: 132 multiprocessors of 1.75 GHz with 4 issue slots can execute 35 instructions for an element in the time
that 3.35 TB/s take to read and write its 16 bits, and half as many in that of reading them. `KB in flight` are the
bytes that the blocks of a multiprocessor can have asked for at once; 20 to 25 KB keep the memory busy.

Rows are 16-byte aligned, as those that linear_paw_loss writes, except where a line says otherwise. Needs nvcc, and
nvdisasm from the toolkit or from `pip install nvidia-cuda-nvdisasm`. tests/kernels/test_builds.py fails where a count
is more than 5 % above the committed table.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sass import Kernel, Thread, parse

from paw_fast.kernels import native

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "bench" / "results" / "instructions.md"
VOCABS = (32000, 49152, 50257, 128256, 151936, 152064)
HOPPER = (227 << 10, 228 << 10)  # shared memory of a block, of a multiprocessor
AMPERE = (163 << 10, 164 << 10)
PARAMETERS = 0x210  # where they begin in the constant bank, on sm_90
LOGITS, KINDS, TARGETS, OTHER = 1 << 32, 2 << 32, 3 << 32, 4 << 32  # addresses


class LogitMap(ctypes.Structure):
    _fields_ = [("inv_temperature", ctypes.c_float), ("softcap", ctypes.c_float), ("valid_vocab", ctypes.c_int64)]


class Matrix(ctypes.Structure):
    _fields_ = [("logits", ctypes.c_uint64), ("dtype", ctypes.c_int32), ("rows", ctypes.c_int64),
                ("vocab", ctypes.c_int64), ("stride", ctypes.c_int64)]  # fmt: skip


class TokenLogprobsArgs(ctypes.Structure):
    _fields_ = [("matrix", Matrix), ("targets", ctypes.c_uint64), ("map", LogitMap), ("outputs", ctypes.c_uint64 * 3)]


class TokenLogprobsBackwardArgs(ctypes.Structure):
    _fields_ = [("logits", ctypes.c_uint64), ("grad", ctypes.c_uint64), ("dtype", ctypes.c_int32),
                ("rows", ctypes.c_int64), ("vocab", ctypes.c_int64), ("stride", ctypes.c_int64),
                ("grad_stride", ctypes.c_int64), ("targets", ctypes.c_uint64), ("map", LogitMap),
                ("vectors", ctypes.c_uint64 * 6)]  # fmt: skip


class PawLossArgs(ctypes.Structure):
    _fields_ = [("matrix", Matrix), ("map", LogitMap), ("settings", ctypes.c_uint32 * 10),
                ("targets", ctypes.c_uint64), ("kinds", ctypes.c_uint64), ("vectors", ctypes.c_uint64 * 5),
                ("outputs", ctypes.c_uint64 * 5)]  # fmt: skip


class ClusterPlan(ctypes.Structure):
    _fields_ = [("cluster", ctypes.c_int32), ("slice", ctypes.c_int64), ("shared_bytes", ctypes.c_int64),
                ("reason", ctypes.c_uint64)]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A kernel on a row. `dtype`: 0 fp32, 1 bf16. `blocks`: of a row; `threads`: of a block; `resident`: blocks of a
    multiprocessor."""

    kernel: str
    source: str
    dtype: int
    vocab: int
    aligned: bool
    parameters: tuple[ctypes.Structure | ctypes.c_int32, ...]
    blocks: int
    threads: int
    resident: int
    bytes_in_flight: int  # of a block

    @property
    def key(self) -> tuple[str, str, str]:
        rows = "" if self.aligned else ", rows of odd length"
        return self.kernel, "bf16" if self.dtype else "fp32", f"{self.vocab}{rows}"


def cases() -> Iterator[Case]:
    extension = native._native
    if extension is None:
        raise SystemExit("the compiled extension is missing: install the package")
    for dtype in (1, 0):
        size = 2 if dtype else 4
        for vocab, aligned in [(v, True) for v in VOCABS] + [(50257, False)] * dtype:
            stride = -(-vocab // 64) * 64 if aligned else vocab
            matrix = Matrix(LOGITS - (0 if aligned else stride * size), dtype, 8192, vocab, stride)
            if not aligned:
                matrix.logits += 2  # the counted row begins at an odd multiple of 2 bytes
            row = LogitMap(1.0, 0.0, vocab)
            targets = TARGETS
            batch = 512 * 64  # bytes that the threads of a block ask for at once
            tokens = TokenLogprobsArgs(matrix, targets, row, (OTHER,) * 3)
            yield Case("token_logprobs row_kernel", "token_logprobs", dtype, vocab, aligned, (tokens,), 1, 512, 2,
                       min(batch, vocab * size))  # fmt: skip
            backward = TokenLogprobsBackwardArgs(
                matrix.logits, matrix.logits, dtype, 8192, vocab, stride, stride, targets, row, (OTHER,) * 6
            )
            yield Case("token_logprobs backward_kernel", "token_logprobs", dtype, vocab, aligned, (backward,), 1, 512,
                       2, 512 * 32)  # fmt: skip
            loss = PawLossArgs(matrix, row, (0,) * 10, targets, KINDS, (OTHER,) * 4 + (0,), (OTHER,) * 5)
            plan = extension.row_plan(vocab, size, *HOPPER, 0)
            cluster = len(plan["blocks"])
            length = -(-vocab // (64 * cluster)) * 64
            resident = min(3, HOPPER[1] // (plan["shared_bytes"] + 1024))
            yield Case("paw_loss cluster_kernel", "paw_loss_cluster", dtype, vocab, aligned,
                       (loss, ClusterPlan(cluster, length, plan["shared_bytes"], 0)), cluster, 256, resident,
                       length * size)  # fmt: skip
            kept = extension.kept_elements(vocab, size, 512 * 8, 256, *AMPERE)
            yield Case("paw_loss loss_kernel, as on sm_80", "paw_loss", dtype, vocab, aligned,
                       (loss, ctypes.c_int32(kept)), 1, 512, 1 if kept * size > AMPERE[1] // 2 else 2,
                       min(batch, vocab * size))  # fmt: skip


def constants(parameters: tuple[ctypes.Structure | ctypes.c_int32, ...]) -> dict[int, int]:
    """The parameters as words of the constant bank, each aligned as C aligns it."""
    data = bytearray()
    for one in parameters:
        data += bytes(-len(data) % ctypes.alignment(one)) + bytes(one)
    data += bytes(-len(data) % 4)
    return {PARAMETERS + at: int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)}


def count(case: Case, kernel: Kernel) -> float:
    """Executed instructions an element of the row."""
    words = {TARGETS: case.vocab // 2, TARGETS + 4: 0, KINDS: 1}
    first = 0
    if not case.aligned:  # row 1: its address is what counts
        first = 1
        words |= {TARGETS + 8: case.vocab // 2, TARGETS + 12: 0, KINDS + 1: 1}
    bank = constants(case.parameters)
    total = 0
    for block in range(case.blocks):
        for thread in range(0, case.threads, 32):
            special = {"SR_TID.X": thread, "SR_CTAID.X": first * case.blocks + block, "SR_LANEID": 0}
            total += 32 * Thread(special, bank, words).run(kernel).total()
    return total / case.vocab


def find_nvdisasm() -> str | None:
    """From the toolkit, or from the wheel nvidia-cuda-nvdisasm, which has no command on PATH."""
    wheels = sorted((Path(sysconfig.get_path("purelib")) / "nvidia").glob("*/bin/nvdisasm"))
    return shutil.which("nvdisasm") or next(map(str, wheels), None)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def kernels(objects: Path | None) -> dict[tuple[str, str, int], Kernel]:
    """By source, name and dtype; the versions without softcap."""
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        raise SystemExit("nvdisasm is not installed: `pip install nvidia-cuda-nvdisasm`")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in ("token_logprobs", "paw_loss", "paw_loss_cluster"):
            binary = Path(folder) / f"{source}.cubin"
            if objects is not None:
                binary = objects / f"{source}.cubin"
            else:
                run("nvcc", "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-cubin", "-arch=sm_90a",
                    str(ROOT / "csrc" / f"{source}.cu"), "-o", str(binary))  # fmt: skip
            if not Path(nvdisasm).stat().st_mode & 0o100:
                raise SystemExit(f"{nvdisasm} is not executable")
            for kernel in parse(run(nvdisasm, "-c", str(binary))):
                name = re.search(r"\d+([a-z_]+_kernel)ILb0E(NS_4BF16E|f)E", kernel.name)
                if name:
                    found[source, name[1], int(name[2] != "f")] = kernel
    return found


def measure(objects: Path | None = None) -> dict[tuple[str, str, str], tuple[float, int]]:
    """By kernel, dtype and V: instructions an element, and bytes in flight of a multiprocessor."""
    code = kernels(objects)
    out = {}
    for case in cases():
        name = re.search(r"\w+_kernel", case.kernel)
        assert name is not None
        out[case.key] = (count(case, code[case.source, name[0], case.dtype]), case.resident * case.bytes_in_flight)
    return out


def read_table(text: str) -> dict[tuple[str, str, str], float]:
    _, _, *rows = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return {(kernel, dtype, vocab): float(count) for kernel, dtype, vocab, count, _ in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, help="folder of <source>.cubin for sm_90a; else they are compiled")
    parser.add_argument("--out", type=Path, help="for example bench/results/instructions.md")
    args = parser.parse_args()
    release = re.search(r"release [\d.]+, \S+", run("nvcc", "--version")) if shutil.which("nvcc") else None
    lines = [
        f"Executed instructions an element of the logits, sm_90a, nvcc {release[0] if release else 'not known'}.",
        "By `python bench/kernels/instruction_counts.py`, which says how they are counted and what they mean.",
        "",
        "| kernel | dtype | V | instructions | KB in flight |",
        "|" + " --- |" * 5,
    ]
    for key, (instructions, in_flight) in measure(args.objects).items():
        lines.append(f"| {' | '.join(key)} | {instructions:.2f} | {in_flight / 1024:.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
