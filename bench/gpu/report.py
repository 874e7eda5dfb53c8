"""The results of `acceptance.py` as a table, as JSON, as a plot, and line by line against the targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OURS = "paw-fast"


@dataclass(frozen=True)
class Result:
    """One implementation on one case. Times in ms; `failed` where it could not run, and then nothing else counts."""

    op: str
    peer: str
    rows: int
    vocab: int
    dtype: str
    outputs: str
    median_ms: float = 0.0
    p20_ms: float = 0.0
    p80_ms: float = 0.0
    gb_per_s: float | None = None  # minimal bytes over the median
    share: float | None = None  # of the read (A) or copy (B) rate of this run; C: bare products over it
    data_sheet_share: float | None = None  # of the device's data sheet: clock and width of its memory
    times_ours: float | None = None  # median over the rounds of this peer's time over paw-fast's
    peak_bytes: int | None = None  # beyond the inputs
    allowed_bytes: int | None = None  # linear_paw_loss: a chunk of logits, d_hidden and d_weight
    error: float | None = None  # against float64 on 64 rows; B: relative to the largest gradient
    torch_error: float | None = None  # the same of torch's own expression in the same dtype
    nan: bool = False
    failed: str = ""


@dataclass(frozen=True)
class Target:
    """`value` of each of our results that `where` picks, to be at least (or, with `at_most`, at most) `bound`."""

    text: str
    device: str
    op: str
    where: Callable[[Result], bool]
    value: Callable[[Result, Sequence[Result]], float | None]
    bound: float
    at_most: bool = False


def against(peer: str) -> Callable[[Result, Sequence[Result]], float | None]:
    def value(ours: Result, results: Sequence[Result]) -> float | None:
        same = (ours.op, ours.rows, ours.vocab, ours.dtype)
        found = [r for r in results if (r.op, r.rows, r.vocab, r.dtype) == same and r.peer == peer and not r.failed]
        return found[0].times_ours if found else None

    return value


def _share(r: Result, _: Sequence[Result]) -> float | None:
    return r.share


def _peak(r: Result, _: Sequence[Result]) -> float | None:
    size = 4 if r.dtype == "float32" else 2
    return None if r.peak_bytes is None else r.peak_bytes / (r.rows * r.vocab * size)


def _peak_allowed(r: Result, _: Sequence[Result]) -> float | None:
    return None if r.peak_bytes is None or not r.allowed_bytes else r.peak_bytes / r.allowed_bytes


def _error(r: Result, _: Sequence[Result]) -> float | None:
    return None if r.error is None or r.torch_error is None else r.error - r.torch_error


def _large_fp32(r: Result) -> bool:
    return r.vocab == 151936 and r.dtype == "float32"


A, B, C = "token_logprobs", "paw_loss", "linear_paw_loss"
MANY = lambda r: r.rows == 8192 and r.dtype == "bfloat16"  # noqa: E731
ANY = lambda r: True  # noqa: E731
TARGETS = [
    Target("token_logprobs share of the measured read rate, bf16, 8192 rows", "cuda", A, MANY, _share, 0.95),
    Target("paw_loss share of the measured copy rate, bf16, 8192 rows", "cuda", B, MANY, _share, 0.92),
    Target("linear_paw_loss bare products over ours (1 / 1.08)", "cuda", C, ANY, _share, 1 / 1.08),
    Target("linear_paw_loss peak memory over one chunk + gradients", "both", C, ANY, _peak_allowed, 1.05, at_most=True),
    Target("paw_loss extra memory over the logits", "both", B, ANY, _peak, 0.01, at_most=True),
    Target("token_logprobs ms, 256 x 151936 fp32", "cpu", A, _large_fp32, lambda r, _: r.median_ms, 35.0, at_most=True),
    Target("paw_loss ms, 256 x 151936 fp32", "cpu", B, _large_fp32, lambda r, _: r.median_ms, 80.0, at_most=True),
    Target("token_logprobs times faster than torch eager", "cpu", A, _large_fp32, against("torch eager"), 12.0),
    Target("token_logprobs times faster than torch.compile", "cpu", A, _large_fp32, against("torch.compile"), 3.0),
    Target("paw_loss times faster than torch eager", "cpu", B, _large_fp32, against("torch eager"), 12.0),
    Target("token_logprobs error beyond torch's own (tolerance 2^-20)", "both", A, ANY, _error, 2.0**-20, at_most=True),
    Target("paw_loss error beyond torch's own (tolerance 2^-20)", "both", B, ANY, _error, 2.0**-20, at_most=True),
]


def compare(results: Sequence[Result], device: str) -> list[str]:
    """A table line for each target and case."""
    lines = ["| target | case | wanted | measured | |", "|" + " --- |" * 5]
    for t in (t for t in TARGETS if t.device in (device, "both")):
        # Memory is promised for every size of a chunk, speed for the default.
        every = t.value is _peak_allowed
        ours = [r for r in results if r.op == t.op and not r.failed and t.where(r)]
        ours = [r for r in ours if r.peer == OURS or (every and r.peer.startswith(OURS))]
        for r in ours:
            value = t.value(r, results)
            met = "not measured"
            if value is not None:
                met = "met" if (value <= t.bound if t.at_most else value >= t.bound) else "**missed**"
            sign = "<=" if t.at_most else ">="
            shown = "" if value is None else f"{value:.3g}"
            note = r.peer.removeprefix(OURS)
            lines.append(
                f"| {t.text} | {r.rows} x {r.vocab} {r.dtype}{note} | {sign} {t.bound:.3g} | {shown} | {met} |"
            )
        if not ours:
            lines.append(f"| {t.text} | no such case in this run | {t.bound:.3g} | | not measured |")
    return lines


def markdown(head: dict[str, object], results: Sequence[Result], checks: Sequence[str]) -> str:
    lines = [f"# Kernel acceptance, {head['device']}", "", *(f"- {k}: {v}" for k, v in head.items()), ""]
    lines += [
        "GB/s counts the minimal bytes: one read of the logits, in paw_loss one write too. `share`: of the read rate",
        "of the run, in paw_loss of its copy rate; in linear_paw_loss the time of bare matrix products over its own.",
        "`torch`: the error of torch's own expression.", "",
        "| op | who | N x V | dtype | ms (p20-p80) | GB/s | share | of data sheet | x ours | peak MB | error | torch | NaN | computes |",  # noqa: E501
        "|" + " --- |" * 14,
    ]  # fmt: skip
    for r in results:
        where = f"| {r.op} | {r.peer} | {r.rows} x {r.vocab} | {r.dtype} |"
        if r.failed:
            lines.append(f"{where} {r.failed} | | | | | | | | | {r.outputs} |")
            continue
        numbers = [
            f"{r.median_ms:.3g} ({r.p20_ms:.3g}-{r.p80_ms:.3g})",
            "" if r.gb_per_s is None else f"{r.gb_per_s:.1f}",
            "" if r.share is None else f"{100 * r.share:.0f} %",
            "" if r.data_sheet_share is None else f"{100 * r.data_sheet_share:.0f} %",
            "" if r.times_ours is None else f"{r.times_ours:.2f}",
            "" if r.peak_bytes is None else f"{r.peak_bytes / 1e6:.1f}",
            "" if r.error is None else f"{r.error:.1e}",
            "" if r.torch_error is None else f"{r.torch_error:.1e}",
            "yes" if r.nan else "no",
            r.outputs,
        ]
        lines.append(f"{where} {' | '.join(numbers)} |")
    kind = "cuda" if head["kind"] == "cuda" else "cpu"
    lines += ["", "## Against the targets", "", *compare(results, kind)]
    if checks:
        lines += ["", "## compute-sanitizer", "", *(f"- {c}" for c in checks)]
    return "\n".join(lines) + "\n"


def plot(results: Sequence[Result], path: Path) -> None:
    """Share of the measured bandwidth against V, for the rows and dtype with the most vocabularies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    for op, ax in zip((A, B), axes, strict=True):
        mine = [r for r in results if r.op == op and r.share is not None]
        groups = {(r.rows, r.dtype): {s.vocab for s in mine if (s.rows, s.dtype) == (r.rows, r.dtype)} for r in mine}
        if not groups:
            continue
        rows, dtype = max(groups, key=lambda key: len(groups[key]))
        for peer in dict.fromkeys(r.peer for r in mine):
            points = sorted((r.vocab, r.share) for r in mine if (r.peer, r.rows, r.dtype) == (peer, rows, dtype))
            ax.plot([v for v, _ in points], [s for _, s in points], marker="o", label=peer)
        ax.set(title=f"{op}, {rows} rows, {dtype}", xlabel="vocabulary", ylim=(0, None))
        ax.legend(fontsize=8)
    axes[0].set_ylabel("share of the measured bandwidth")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write(
    folder: Path, head: dict[str, object], results: Sequence[Result], checks: Sequence[str], with_plot: bool = True
) -> None:
    """Writes acceptance.md, .json and .png, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {**head, "compute-sanitizer": list(checks), "results": [asdict(r) for r in results]}
    texts = {"acceptance.md": markdown(head, results, checks), "acceptance.json": json.dumps(record, indent=1)}
    for name, text in texts.items():
        half = folder / f"{name}.part"
        half.write_text(text, encoding="utf-8")
        half.replace(folder / name)
    if with_plot:
        plot(results, folder / "acceptance.png")
