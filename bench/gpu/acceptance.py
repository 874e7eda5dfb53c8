"""Ops (a), (b) and (c) against the targets of docs/kernels.md, on one GPU in under ten minutes, or on the CPU.

    python bench/gpu/acceptance.py                   # the GPU, every size
    python bench/gpu/acceptance.py --device cpu      # 256 rows, two vocabularies
    python bench/gpu/acceptance.py --device cpu --quick    # tiny sizes: proves the script

Protocol: warm-up; then 30 rounds, in each of which every implementation runs once (interleaved, so that a busy machine
slows all of them). CUDA: events, and a buffer larger than L2 written before each run. Median, p20 and p80; ratios are
medians of the rounds' ratios. GB/s counts the minimal bytes: (a) one read, (b) one
read and one write; the read and copy rates that they are compared with are measured in the same run.
Peak memory is what a call allocates beyond its inputs.
Errors are against float64 on 64 rows. Peers that are not installed are left out by name.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from paw_fast import kernels as K
from paw_fast.kernels.reference import paw_loss_reference, token_logprobs_reference

VOCABS = (32000, 49152, 128256, 151936, 262144)
OURS = "paw-fast"


@dataclass
class Result:
    op: str
    peer: str
    rows: int
    vocab: int
    dtype: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    gb_per_s: float | None  # minimal bytes over the median
    share_of_rate: float | None  # that over the read (a) or copy (b) rate of this run; (c): bare products over ours
    times_ours: float  # median over the rounds of peer / paw-fast
    peak_bytes: int | None
    error: float | None
    outputs: str  # what the peer computes
    note: str = ""


class Clock:
    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device) if self.cuda else None

    def ms(self, call: Callable[[], object]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        assert self.flush is not None
        self.flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def peak_of(call: Callable[[], object], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def rates(device: torch.device, clock: Clock, rounds: int, quick: bool) -> dict[str, float]:
    """Bytes per second of a read (sum) and of a copy (bytes both ways) of a buffer that no cache holds."""
    source = torch.ones((1 << 22) if quick else (1 << 28), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    out = {}
    for name, call, factor in (("read", lambda: source.sum(), 1), ("copy", lambda: target.copy_(source), 2)):
        times = [clock.ms(call) for _ in range(rounds + 3)][3:]
        out[name] = factor * source.numel() * 4 / (statistics.median(times) * 1e-3)
    return out


def eager_token_logprobs(logits: Tensor, targets: Tensor) -> object:
    x = logits.float()
    logprobs = torch.log_softmax(x, -1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropies, torch.logsumexp(x, -1)


def eager_loss(logits: Tensor, rows: K.LossRows) -> Tensor:
    """The clipped surrogate and CMAE with entropy as a statistic, as a trainer writes it by hand."""
    x = logits.float()
    logprobs = torch.log_softmax(x, -1)
    with torch.no_grad():
        -(logprobs.exp() * logprobs).sum(-1)
    logp = logprobs.gather(-1, rows.targets[:, None])[:, 0]
    ratio = torch.exp(logp - rows.old_logprobs)
    surrogate = -torch.minimum(rows.advantages * ratio, rows.advantages * ratio.clamp(0.8, 1.2))
    world_model = 1 - torch.exp(logp).clamp(max=0.2)
    return (torch.where(rows.kinds == K.POLICY, surrogate, world_model) * rows.weights).sum()


def optional_peers() -> tuple[dict[str, Callable[[Tensor, Tensor], object]], list[str]]:
    """Cross-entropies of other libraries, forward and backward; they compute neither entropy nor a policy loss."""
    found: dict[str, Callable[[Tensor, Tensor], object]] = {}
    missing = []
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy

        found["liger cross_entropy"] = lambda x, t: liger_cross_entropy(x, t).backward()
    except ImportError:
        missing.append("liger-kernel")
    try:
        from quack.cross_entropy import cross_entropy

        found["quack cross_entropy"] = lambda x, t: cross_entropy(x, t).sum().backward()
    except ImportError:
        missing.append("quack-kernels")
    try:
        import cut_cross_entropy  # noqa: F401
    except ImportError:
        missing.append("cut-cross-entropy")
    return found, missing


def interleave(calls: dict[str, Callable[[], object]], clock: Clock, rounds: int) -> dict[str, list[float]]:
    for call in calls.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(clock.ms(call))
    return times


def loss_rows(logits: Tensor, targets: Tensor) -> K.LossRows:
    num, device = len(targets), logits.device
    return K.LossRows(
        targets,
        1 + torch.arange(num, device=device).remainder(2).to(torch.uint8),
        torch.full((num,), 1.0 / num, device=device),
        K.token_logprobs(logits, targets).logprobs + 0.1 * torch.randn(num, device=device),
        torch.randn(num, device=device),
    )


def measure_rows(
    device: torch.device, clock: Clock, rate: dict[str, float], rows: int, vocab: int, dtype: torch.dtype, args
) -> list[Result]:
    source = torch.randn(rows, vocab, device=device).to(dtype)
    targets = torch.randint(0, vocab, (rows,), device=device)
    batch, settings = loss_rows(source, targets), K.LossSettings()
    work = source.clone()  # (b) overwrites it: after the first run it works on gradients, which cost the same
    results = []

    def add(op: str, calls: dict[str, Callable[[], object]], reads: int, rate_name: str, errors, outputs) -> None:
        times = interleave(calls, clock, args.rounds)
        num_bytes = reads * rows * vocab * source.element_size()
        for name, values in times.items():
            median = statistics.median(values)
            gbs = num_bytes / (median * 1e-3)
            results.append(
                Result(
                    op, name, rows, vocab, str(dtype).removeprefix("torch."), median, quantile(values, 0.2),
                    quantile(values, 0.8), gbs / 1e9, gbs / rate[rate_name],
                    statistics.median(v / o for v, o in zip(values, times[OURS], strict=True)),
                    peak_of(calls[name], device), errors.get(name), outputs.get(name, "logp, entropy, lse"),
                )
            )  # fmt: skip

    some = slice(0, min(64, rows))
    truth = token_logprobs_reference(source[some].double(), targets[some])
    mine = K.token_logprobs(source[some], targets[some])
    error_a = max((m.double() - t).abs().max().item() for m, t in zip(mine, truth, strict=True))
    compiled_a = torch.compile(eager_token_logprobs, dynamic=False)
    calls = {
        OURS: lambda: K.token_logprobs(source, targets),
        "torch eager": lambda: eager_token_logprobs(source, targets),
    }
    if not args.no_compile:
        calls["torch.compile"] = lambda: compiled_a(source, targets)
    add("a token_logprobs", calls, 1, "read", {OURS: error_a}, {})

    cut = K.LossRows(*(getattr(batch, f)[some] for f in ("targets", "kinds", "weights", "old_logprobs", "advantages")))
    exact_in = source[some].double().requires_grad_()
    paw_loss_reference(exact_in, cut, settings).loss.backward()
    gradient = source[some].clone()
    K.paw_loss(gradient, cut, settings)
    assert exact_in.grad is not None
    error_b = (gradient.double() - exact_in.grad).abs().max().item() / exact_in.grad.abs().max().item()
    leaf = source.clone().requires_grad_()
    compiled_b = torch.compile(eager_loss, dynamic=False)

    def backward(loss: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> None:
            leaf.grad = None
            loss(leaf, batch).backward()

        return run

    calls = {OURS: lambda: K.paw_loss(work, batch, settings), "torch eager": backward(eager_loss)}
    if not args.no_compile:
        calls["torch.compile"] = backward(compiled_b)
    outputs = {OURS: "loss, dlogits, logp, entropy, kl, flags"}
    outputs |= dict.fromkeys(("torch eager", "torch.compile"), "loss, dlogits, entropy")
    peers, _ = optional_peers()
    if device.type == "cuda":
        for name, peer in peers.items():

            def run(peer: Callable[[Tensor, Tensor], object] = peer) -> None:
                leaf.grad = None
                peer(leaf, targets)

            calls[name] = run
            outputs[name] = "cross-entropy, dlogits"
    add("b paw_loss", calls, 2, "copy", {OURS: error_b}, outputs)
    return results


def measure_linear(device: torch.device, clock: Clock, rows: int, hidden: int, vocab: int, args) -> list[Result]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(rows, hidden, device=device).to(dtype).requires_grad_()
    w = (torch.randn(vocab, hidden, device=device) / hidden**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), device=device)
    settings = K.LossSettings()
    batch = K.LossRows(
        targets,
        torch.full((rows,), K.POLICY, dtype=torch.uint8, device=device),
        torch.full((rows,), 1.0 / rows, device=device),
        torch.full((rows,), -10.0, device=device),
        torch.randn(rows, device=device),
    )

    def ours() -> None:
        x.grad = w.grad = None
        K.linear_paw_loss(x, w, batch, settings).loss.backward()

    def eager() -> None:
        x.grad = w.grad = None
        eager_loss(x @ w.T, batch).backward()

    def products() -> None:
        with torch.no_grad():
            logits = x @ w.T
            torch.mm(logits, w)
            torch.mm(logits.T, x)

    times = interleave({OURS: ours, "bare products": products, "torch eager": eager}, clock, args.rounds)
    bare = times["bare products"]
    calls = {OURS: ours, "bare products": products, "torch eager": eager}
    return [
        Result(
            "c linear_paw_loss", name, rows, vocab, str(dtype).removeprefix("torch."), statistics.median(values),
            quantile(values, 0.2), quantile(values, 0.8), None,
            statistics.median(b / v for b, v in zip(bare, values, strict=True)),
            statistics.median(v / o for v, o in zip(values, times[OURS], strict=True)),
            peak_of(calls[name], device), None, "nothing" if name == "bare products" else "loss, d_hidden, d_weight",
            f"H = {hidden}",
        )
        for name, values in times.items()
    ]  # fmt: skip


def commit() -> str:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def markdown(head: dict[str, object], results: list[Result]) -> str:
    lines = [f"# Kernel acceptance, {head['device']}", "", *(f"- {k}: {v}" for k, v in head.items()), ""]
    lines.append(
        "| op | who | rows x V | dtype | ms (p20-p80) | GB/s | of rate | x ours | peak MB | error | computes |"
    )
    lines.append("|" + " --- |" * 11)
    for r in results:
        gbs = "" if r.gb_per_s is None else f"{r.gb_per_s:.1f}"
        share = "" if r.share_of_rate is None else f"{100 * r.share_of_rate:.0f} %"
        peak = "" if r.peak_bytes is None else f"{r.peak_bytes / 1e6:.0f}"
        error = "" if r.error is None else f"{r.error:.1e}"
        lines.append(
            f"| {r.op} | {r.peer} | {r.rows} x {r.vocab} {r.note} | {r.dtype} | {r.median_ms:.2f} "
            f"({r.p20_ms:.2f}-{r.p80_ms:.2f}) | {gbs} | {share} | {r.times_ours:.2f} | {peak} | {error} | {r.outputs} |"
        )
    return "\n".join(lines) + "\n"


def plot(results: list[Result], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    for op in ("a token_logprobs", "b paw_loss"):
        points = sorted({r.vocab: r.share_of_rate for r in results if r.op == op and r.peer == OURS}.items())
        axes.plot([v for v, _ in points], [s for _, s in points], marker="o", label=op)
    axes.set(xlabel="vocabulary", ylabel="share of the measured bandwidth", ylim=(0, None))
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to prove the script")
    parser.add_argument("--case", help="only (a) and (b) of one size, for example 256x151936xfloat32")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="folder for acceptance.md, .json and .png")
    args = parser.parse_args()
    device = torch.device(args.device)
    reason = K.unavailable_reason("paw_loss", device)
    if reason is not None:
        raise SystemExit(f"cannot run on {device}: {reason}")
    cuda = device.type == "cuda"
    if cuda:
        cases = [(8192, v, torch.bfloat16) for v in VOCABS]
        cases += [(8192, 151936, d) for d in (torch.float16, torch.float32)]
        cases += [(n, 151936, torch.bfloat16) for n in (64, 512)]
        linear = (8192, 4096, 131072)
    else:
        torch.set_num_threads(2)
        cases = [(256, v, d) for v in (32000, 151936) for d in (torch.float32, torch.bfloat16)]
        linear = (256, 576, 49152)
    if args.quick:
        cases, linear = [(8, 1000, torch.float32), (8, 1001, torch.bfloat16)], (16, 32, 1000)
    if args.case:
        num, vocab, name = args.case.split("x")
        cases = [(int(num), int(vocab), getattr(torch, name))]
    clock = Clock(device)
    rate = rates(device, clock, args.rounds, args.quick)
    head: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()}, {K.kernel_info()['cpu_isa']}",
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "read GB/s": round(rate["read"] / 1e9, 1),
        "copy GB/s": round(rate["copy"] / 1e9, 1),
        "peers not installed": ", ".join(optional_peers()[1]) or "none",
    }
    results: list[Result] = []
    for rows, vocab, dtype in cases:
        results += measure_rows(device, clock, rate, rows, vocab, dtype, args)

    if not args.case:
        results += measure_linear(device, clock, *linear, args)
    text = markdown(head, results)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "acceptance.md").write_text(text)
        (args.out / "acceptance.json").write_text(
            json.dumps({**head, "results": [asdict(r) for r in results]}, indent=1)
        )
        plot(results, args.out / "acceptance.png")


if __name__ == "__main__":
    main()
