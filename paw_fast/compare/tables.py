"""Builds the tables of a comparison as text, for HTML and Markdown alike. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paw_fast.compare.figures import SYMBOLS
from paw_fast.compare.plan import Plan
from paw_fast.compare.results import ArmResult, PairResult, reach
from paw_fast.compare.sentences import ends, p_text, signed
from paw_fast.runs.run_facts import duration, percent
from paw_fast.runs.run_groups import Estimate


@dataclass(frozen=True)
class TextTable:
    """A table: title, note, heads of the columns, and rows of as many cells, of which the first is the row's name."""

    title: str
    note: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def symbol(results: Sequence[ArmResult], name: str) -> str:
    """An arm's name with the mark that its lines have."""
    index = next(i for i, one in enumerate(results) if one.name == name)
    return f"{SYMBOLS[index % len(SYMBOLS)]} {name}"


def _mean(estimate: Estimate | None, points: bool = True) -> str:
    """A mean over seeds with its interval in brackets."""
    if estimate is None:
        return "-"
    text = percent(estimate.value) if points else f"{estimate.value:.3f}"
    if estimate.low is None or estimate.high is None:
        return text
    low, high = max(0.0, estimate.low), min(1.0, estimate.high)
    return f"{text} (95 %: {100 * low:.1f} to {100 * high:.1f})"


def success_table(results: Sequence[ArmResult]) -> TextTable:
    """Success of each arm, the area under its curve, and the steps to RL's final success."""
    base, level, steps = reach(results)
    rows = []
    for one in results:
        if not one.runs:
            rows.append((symbol(results, one.name), "0", *["-"] * 4))
            continue
        at = steps[one.name]
        rows.append(
            (
                symbol(results, one.name), str(len(one.runs)), _mean(one.before_after(True)),
                _mean(one.before_after(False)), _mean(one.estimate([one.area(seed) for seed in one.runs])),
                "not reached" if at is None else f"{at:.0f}",
            )
        )  # fmt: skip
    heads = ("seeds", "success before", "after", "mean over training", f"steps to {percent(level)}")
    note = (
        "Means over the seeds, with Student's 95 % interval. Mean over training: the area under the curve of "
        f"evaluations over its steps. Steps to {percent(level)}: where the arm's mean curve first reaches the final "
        f"success of {base}, with straight lines between evaluations."
    )
    return TextTable("Arms", note, ("arm", *heads), tuple(rows))


def pair_table(pairs: Sequence[PairResult]) -> TextTable:
    """The difference of each pair of arms."""
    rows = []
    for pair in pairs:
        area = signed(pair.area.value)
        if pair.area.low is not None and pair.area.high is not None:
            area += f" (95 %: {ends(pair.area.low, pair.area.high)})"
        known = bool(pair.success.seed_variance)
        seeds_text = str(pair.needed or "more tasks") if known else "-"
        verdict = "one seed" if pair.p is None else "differ" if pair.told_apart else "cannot be told apart"
        rows.append(
            (
                f"{pair.second} − {pair.first}", signed(pair.success.value),
                ends(pair.success.low, pair.success.high), ends(*pair.bootstrap), p_text(pair), area, seeds_text,
                verdict,
            )
        )  # fmt: skip
    effect = f"{100 * pairs[0].effect:g}" if pairs else "5"
    heads = (
        "pair", "final success, points", "95 % interval", "percentile bootstrap", "permutation p", "mean over training",
        f"seeds for {effect} points", "verdict",
    )  # fmt: skip
    note = (
        "Paired: the same seed, warm start, training tasks and evaluation tasks. The interval is over seeds and tasks "
        "(two-way variance, Student's t); beside it the percentile interval of a paired bootstrap that resamples both. "
        "The permutation test flips the signs of the seeds' differences. Seeds: so many would show a true difference "
        f"of {effect} points at the level of 5 % with a power of 80 % (Guenther 1981)."
    )
    if few := sorted({len(pair.seeds) for pair in pairs if pair.p_smallest is not None and pair.p_smallest > 0.05}):
        note += f" It cannot give p < 0.05 with {few[-1]} seeds: from 6 on it can."
    if len(pairs) > 1:
        note += (
            f" The intervals are for one pair each: of {len(pairs)} pairs of equal arms about {0.05 * len(pairs):.2g} "
            "would exclude 0."
        )
    return TextTable("Pairs", note, heads, tuple(rows))


def cost_table(results: Sequence[ArmResult], jobs_note: str) -> TextTable:
    """Seconds, tokens and memory of each arm."""
    rows = []
    for one in (one for one in results if one.runs):
        seconds, tokens, memory = (_average(x) for x in (one.train_seconds, one.tokens, one.memory_bytes))
        steps = sum(run.done for run in one.runs.values()) / len(one.runs)
        rows.append(
            (
                symbol(results, one.name), duration(seconds), f"{seconds / max(1.0, steps):.2f} s",
                f"{tokens / 1e6:.2f} M",
                f"{memory / 2**20:.0f} MiB",
            )
        )  # fmt: skip
    note = "Means over the runs of an arm: training steps without the warm start and evaluations. " + jobs_note
    heads = ("arm", "training time", "time of a step", "tokens processed", "peak memory")
    return TextTable("Cost", note, heads, tuple(rows))


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def world_model_table(results: Sequence[ArmResult]) -> TextTable:
    """What each arm knows of observations, and how its loss was weighted."""
    rows = []
    for one in (one for one in results if one.runs):
        cells = []
        for metric in ("wm/eval_probability", "wm/eval_action_gap"):
            found = one.ends(metric)
            cells.append("-" if found is None else f"{found[0]:.3f} to {found[1]:.3f}")
        for metric in ("wm/next_observation_error", "wm/lambda_mean", "wm/clipped_token_ratio"):
            value = one.ends(metric)
            cells.append("-" if value is None else f"{value[0]:.3f} to {value[1]:.3f}")
        invalid = one.recent("episode/invalid_action_rate")
        rows.append((symbol(results, one.name), *cells, percent(invalid)))
    heads = (
        "arm", "held-out probability", "action gap", "next-observation error", "lambda", "clipped tokens",
        "invalid actions at the end",
    )  # fmt: skip
    note = (
        "From the first to the last value, means over the seeds. Held-out probability: of the observation tokens of "
        "evaluation episodes; the action gap is what it loses when the action is replaced by another transition's."
    )
    return TextTable("World model", note, heads, tuple(rows))


def arm_table(plan: Plan) -> TextTable:
    """What the arms are."""
    from paw_fast.compare.arms import flat

    rows = []
    for arm in plan.arms:
        text = ", ".join(f"{key} = {_toml(value)}" for key, value in flat(arm.settings).items())
        rows.append((arm.name, arm.about, text or "-"))
    return TextTable("Settings of the arms", "What each arm changes.", ("arm", "what it is", "settings"), tuple(rows))


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
