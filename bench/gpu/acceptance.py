"""Measures the ops against the targets of docs/reference/kernels.md, on one GPU in ten minutes, or on the CPU.

    python bench/gpu/acceptance.py --out bench/results/h100              # the GPU: every size, every installed peer
    python bench/gpu/acceptance.py --device cpu --out bench/results/cpu  # 256 rows, two vocabularies, two threads
    python bench/gpu/acceptance.py --device cpu --quick                  # tiny sizes: proves the script
    python bench/gpu/acceptance.py --only a b --case 8192x151936xbfloat16    # in pieces
    python bench/gpu/acceptance.py --sanitizers --out bench/results/h100    # a second call: compute-sanitizer

Protocol: warm-up (compilation too), then rounds, 30 on a GPU and 7 on a CPU, in each of which every implementation
runs once, so that whatever else goes on slows all of them. What a call overwrites is restored before it. CUDA:
events; before each run a buffer larger than L2 is read (a written one would be charged to the call, when it is
evicted), and the device sleeps while the host launches, so that launch time is hidden. Median, p20 and p80; ratios
are medians of the rounds' ratios. GB/s counts the minimal bytes: one read of the logits, in paw_loss a write too; the
read and copy rates beside them are measured in the same run, the data sheet's rate follows from the memory's clock
and width (3350 GB/s for an H100 SXM). Peak memory is what a call takes beyond its inputs: the allocator's on CUDA,
the process's high-water mark on a CPU. Errors are against float64 on 64 rows, beside those of torch's own expression
in the same dtype. Every peer says what it computes and is checked for NaN; one that is not installed is named, one
that fails (out of memory, say) keeps its line with the reason.

The files in --out are written after every case, so a run that is killed keeps what it has measured. A failure of our
own kernels is a line of the table, and exit code 1 at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from clock import Clock, data_sheet_rate, rates
from peers import (
    EVERYTHING,
    Case,
    Peer,
    eager_loss,
    eager_token_logprobs,
    linear_peers,
    loss_peers,
    make_case,
    make_rows,
    missing,
    token_peers,
)
from report import OURS, A, B, C, Result, markdown, write
from torch import Tensor

from paw_fast import kernels as K
from paw_fast.kernels.linear_paw_loss import chunk_rows, default_chunk_bytes, row_length
from paw_fast.kernels.reference import paw_loss_reference, token_logprobs_reference

SHORT = {"a": A, "b": B, "c": C}
ROOT = Path(__file__).resolve().parents[2]
VOCABS = (32000, 49152, 128256, 151936, 262144)
SETTINGS = K.LossSettings()
PLAIN = f"{OURS}, no clusters"
SANITIZERS = ("memcheck", "racecheck", "initcheck")


def reason_of(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"failed: {lines[0][:100] if lines else type(error).__name__}"


def measure(
    op: str, peers: list[Peer], shape: tuple[int, int, torch.dtype], clock: Clock, rounds: int,
    num_bytes: int | None, rate: float, data_sheet: float | None, ours: dict[str, object],
) -> list[Result]:  # fmt: skip
    """Warms up and checks every peer, then interleaves them. `ours`: fields of the results whose peer is our own."""
    num, vocab, dtype = shape
    base = (num, vocab, str(dtype).removeprefix("torch."))
    results, ready, nan, peak = [], [], {}, {}
    for p in peers:
        try:
            p.call()
            if p.restore:
                p.restore()
            nan[p.name] = any(bool(t.isnan().any()) for t in p.call() if t.is_floating_point())
            if p.restore:
                p.restore()
            peak[p.name] = clock.peak_bytes(p.call)
            ready.append(p)
        except Exception as error:  # a failure is a finding, not the end of the bench
            results.append(Result(op, p.name, *base, p.outputs, failed=reason_of(error)))
    times: dict[str, list[float]] = {p.name: [] for p in ready}
    for _ in range(rounds):
        for p in ready:
            if p.restore:
                p.restore()
            times[p.name].append(clock.ms(p.call))
    for p in ready:
        values = sorted(times[p.name])
        median = statistics.median(values)
        gbs = None if num_bytes is None else num_bytes / (median * 1e-3)
        if gbs is None:
            share = statistics.median(
                b / v for b, v in zip(times["bare products"], times[p.name], strict=True)
            ) if "bare products" in times else None  # fmt: skip
        else:
            share = gbs / rate
        mine = ours if p.name.startswith(OURS) else {}
        results.append(
            Result(
                op, p.name, *base, p.outputs, median, values[int(0.2 * len(values))], values[int(0.8 * len(values))],
                None if gbs is None else gbs / 1e9, share,
                None if gbs is None or data_sheet is None else gbs / data_sheet,
                statistics.median(v / o for v, o in zip(times[p.name], times[OURS], strict=True))
                if OURS in times else None,
                peak[p.name], nan=nan[p.name], **mine,
            )
        )  # fmt: skip
    return results


def without_clusters(call: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    def plain() -> tuple[Tensor, ...]:
        os.environ["PAW_FAST_CUDA_PATH"] = "plain"
        try:
            return call()
        finally:
            del os.environ["PAW_FAST_CUDA_PATH"]

    return plain


def our_own(name: str, outputs: str, call: Callable[[], tuple[Tensor, ...]], cuda: bool) -> list[Peer]:
    peers = [Peer(name, outputs, call)]
    if cuda and torch.cuda.get_device_capability()[0] >= 9:
        peers.append(Peer(PLAIN, outputs, without_clusters(call)))
    return peers


def errors(case: Case) -> tuple[dict[str, object], dict[str, object]]:
    """Fields `error` and `torch_error` of token_logprobs and of paw_loss, against float64 on up to 64 rows."""
    some = slice(0, 64)
    logits, rows = case.logits[some], case.rows
    targets = rows.targets[some]
    truth = token_logprobs_reference(logits.double(), targets)

    def worst(got: tuple[Tensor, ...]) -> float:
        return max((g.double() - t).abs().max().item() for g, t in zip(got, truth, strict=True))

    cut = K.LossRows(*(getattr(rows, f)[some] for f in ("targets", "kinds", "weights", "old_logprobs", "advantages")))

    def gradient(precision: torch.dtype) -> Tensor:
        x = logits.to(precision).requires_grad_()
        paw_loss_reference(x, cut, SETTINGS).loss.backward()
        assert x.grad is not None
        return x.grad

    exact = gradient(torch.float64)
    mine = logits.clone()
    K.paw_loss(mine, cut, SETTINGS)

    def relative(got: Tensor) -> float:
        return ((got.double() - exact).abs().max() / exact.abs().max()).item()

    ours, torchs = K.token_logprobs(logits, targets), eager_token_logprobs(logits, targets)
    of_a: dict[str, object] = {"error": worst(ours), "torch_error": worst(torchs)}
    of_b: dict[str, object] = {
        "error": relative(mine), "torch_error": relative(gradient(torch.float32).to(logits.dtype)),
    }  # fmt: skip
    return of_a, of_b


def measure_rows(
    num: int, vocab: int, dtype: torch.dtype, clock: Clock, rate: dict[str, float], compiled: dict, args
) -> Iterator[list[Result]]:
    """The results of token_logprobs, then those of paw_loss."""
    data_sheet = data_sheet_rate(clock.device)
    cuda = clock.device.type == "cuda"
    case = make_case(num, vocab, dtype, clock.device)
    of_a, of_b = errors(case)
    size = num * vocab * case.logits.element_size()
    shape = (num, vocab, dtype)
    if "a" in args.only:
        call = lambda: tuple(K.token_logprobs(case.logits, case.rows.targets))  # noqa: E731
        peers = our_own(OURS, "logp, entropy, lse", call, cuda)
        if not args.ours:
            peers += token_peers(case, compiled.get("a"))
        yield measure(A, peers, shape, clock, args.rounds, size, rate["read"], data_sheet, of_a)
    if "b" in args.only:
        # It overwrites its buffer. On gradients in place of logits other rows would be clipped, and cost less.
        call = lambda: (K.paw_loss(case.work, case.rows, SETTINGS).loss, case.work)  # noqa: E731
        restore = lambda: case.work.copy_(case.logits)  # noqa: E731
        peers = [dataclasses.replace(p, restore=restore) for p in our_own(OURS, EVERYTHING, call, cuda)]
        if not args.ours:
            peers += loss_peers(case, compiled.get("b"))
        yield measure(B, peers, shape, clock, args.rounds, 2 * size, rate["copy"], data_sheet, of_b)


def measure_linear(num: int, hidden: int, vocab: int, clock: Clock, args) -> list[Result]:
    cuda = clock.device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    x = torch.randn(num, hidden, device=clock.device).to(dtype).requires_grad_()
    w = (torch.randn(vocab, hidden, device=clock.device) / hidden**0.5).to(dtype).requires_grad_()
    rows = make_rows(num, vocab, clock.device)

    def ours(chunk_bytes: int) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            x.grad = w.grad = None
            loss = K.linear_paw_loss(x, w, rows, SETTINGS, chunk_bytes=chunk_bytes).loss
            loss.backward()
            assert x.grad is not None
            assert w.grad is not None
            return loss.detach(), x.grad, w.grad

        return call

    def no_gradients() -> None:
        x.grad = w.grad = None

    outputs = "loss, d_hidden, d_weight, logp, entropy, kl, flags"
    other = (f"{OURS}, one chunk", 1 << 40) if cuda else (f"{OURS}, 16 MB chunks", 16 << 20)
    chunks = dict([(OURS, default_chunk_bytes(clock.device)), other])
    peers = [Peer(name, outputs, ours(size), no_gradients) for name, size in chunks.items()]
    if not args.ours:
        peers += [dataclasses.replace(p, restore=no_gradients) for p in linear_peers(x, w, rows)]
    size = w.element_size()
    # d_weight is summed in fp32 over several chunks, and then rounded to its own dtype.
    gradients = x.numel() * size + w.numel() * (4 if size == 4 else 4 + size)
    allowed = {name: chunk_rows(num, w, c) * row_length(vocab, dtype) * size + gradients for name, c in chunks.items()}
    results = measure(C, peers, (num, vocab, dtype), clock, args.rounds, None, 1.0, None, {})
    return [dataclasses.replace(r, allowed_bytes=allowed.get(r.peer)) for r in results]


def sanitize(tool: str) -> str:
    """compute-sanitizer over our own kernels at tiny sizes, in a line: "<tool>: exit 0" where all is well."""
    if shutil.which("compute-sanitizer") is None:
        return f"{tool}: not run: compute-sanitizer is not on PATH"
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--quick",
               "--ours", "--rounds", "1", "--only", "a", "b"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return f"{tool}: not finished within 180 s"
    summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
    return f"{tool}: exit {done.returncode}; {summary[-1].strip('= ') if summary else 'no summary'}"


@dataclasses.dataclass
class Record:
    """What has been measured so far, and its files."""

    folder: Path | None
    head: dict[str, object]
    results: list[Result] = dataclasses.field(default_factory=list)
    checks: list[str] = dataclasses.field(default_factory=list)

    def add(self, results: list[Result]) -> None:
        self.results += results
        self.save()

    def save(self, last: bool = False) -> None:
        if self.folder is not None:
            write(self.folder, self.head, self.results, self.checks, with_plot=last)

    def failures(self) -> list[str]:
        ours = [r for r in self.results if r.peer.startswith(OURS) and (r.failed or r.nan)]
        lines = [f"{r.op}, {r.peer}, {r.rows} x {r.vocab} {r.dtype}: {r.failed or 'NaN'}" for r in ours]
        return lines + [c for c in self.checks if ": exit 0" not in c]


def run_sanitizers(folder: Path | None) -> Record:
    """The three tools, their lines added to the files of an earlier run in `folder`."""
    record = Record(folder, {})
    if folder is not None and (folder / "acceptance.json").exists():
        found = json.loads((folder / "acceptance.json").read_text())
        record.results = [Result(**r) for r in found.pop("results")]
        found.pop("compute-sanitizer")
        record.head = found
    for tool in SANITIZERS:
        record.checks.append(sanitize(tool))
        print(record.checks[-1], flush=True)
        if record.head:
            record.save()
    return Record(None, {}, [], record.checks)  # the earlier run has told its own failures


def heading(device: torch.device, rate: dict[str, float]) -> dict[str, object]:
    def output(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        name = f"{models[0].split(':')[1].strip() if models else platform.machine()}, {K.kernel_info()['cpu_isa']}"
    return {
        "device": name,
        "kind": device.type,
        "commit": output("git", "describe", "--always", "--dirty") or "unknown",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "read GB/s": round(rate["read"] / 1e9, 1),
        "copy GB/s": round(rate["copy"] / 1e9, 1),
        "data sheet GB/s": round(sheet / 1e9, 1) if (sheet := data_sheet_rate(device)) else "not known",
        "peers not installed": ", ".join(missing()) or "none",
    }


def plan(args: argparse.Namespace, cuda: bool) -> tuple[list[tuple[int, int, torch.dtype]], tuple[int, int, int]]:
    if args.quick:
        return [(8, 1000, torch.float32), (8, 1001, torch.bfloat16), (8, 70000, torch.bfloat16)], (16, 32, 1000)
    if args.case:
        num, vocab, name = args.case.split("x")
        return [(int(num), int(vocab), getattr(torch, name))], (int(num), 4096 if cuda else 576, int(vocab))
    if not cuda:
        return [(256, v, d) for v in (32000, 151936) for d in (torch.float32, torch.bfloat16)], (512, 576, 49152)
    cases = [(8192, v, torch.bfloat16) for v in VOCABS]
    cases += [(8192, 151936, d) for d in (torch.float16, torch.float32)]
    return cases + [(n, 151936, torch.bfloat16) for n in (64, 512)], (8192, 4096, 131072)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help="30 on a GPU, 7 on a CPU")
    parser.add_argument("--only", nargs="+", choices=SHORT, default=["a", "b", "c"],
                        help="a token_logprobs, b paw_loss, c linear_paw_loss")  # fmt: skip
    parser.add_argument("--sanitizers", action="store_true", help="only compute-sanitizer's tools, into --out's files")
    parser.add_argument("--case", help="one size, for example 256x151936xfloat32")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to prove the script")
    parser.add_argument("--ours", action="store_true", help="no peers")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--out", type=Path, help="folder for acceptance.md, .json and .png")
    args = parser.parse_args()
    if args.sanitizers:
        return finish(run_sanitizers(args.out))
    device = torch.device(args.device)
    reason = K.unavailable_reason("paw_loss", device)
    if reason is not None:
        raise SystemExit(f"cannot run on {device}: {reason}")
    cuda = device.type == "cuda"
    args.rounds = args.rounds or (30 if cuda else 7)
    if not cuda:
        torch.set_num_threads(args.threads)
    compiled = {}
    if not (args.no_compile or args.ours):
        # A GPU's many sizes share one program after the second; on the CPU each of the few gets its own.
        dynamic = None if cuda else False
        compiled = {"a": torch.compile(eager_token_logprobs, dynamic=dynamic),
                    "b": torch.compile(eager_loss, dynamic=dynamic)}  # fmt: skip
    clock = Clock(device)
    rate = rates(clock, args.rounds, args.quick)
    record = Record(args.out, heading(device, rate))
    cases, linear = plan(args, cuda)
    for num, vocab, dtype in cases if {"a", "b"} & set(args.only) else []:
        left = [SHORT[letter] for letter in ("a", "b") if letter in args.only]
        try:
            for results in measure_rows(num, vocab, dtype, clock, rate, compiled, args):
                record.add(results)
                left.pop(0)
        except Exception as error:
            name = str(dtype).removeprefix("torch.")
            record.add([Result(op, OURS, num, vocab, name, "", failed=reason_of(error)) for op in left])
        print(f"{num} x {vocab} {dtype}: done, {time.process_time():.0f} s of CPU", file=sys.stderr, flush=True)
    if "c" in args.only:
        try:
            record.add(measure_linear(*linear, clock, args))
        except Exception as error:
            record.add([Result(C, OURS, linear[0], linear[2], "", "", failed=reason_of(error))])
    print(markdown(record.head, record.results, record.checks))
    record.save(last=True)
    finish(record)


def finish(record: Record) -> None:
    failures = record.failures()
    if failures:
        raise SystemExit("\n".join(["failures of our own:", *failures]))


if __name__ == "__main__":
    main()
