"""Says in one sentence how two arms differ. Imports no torch."""

from __future__ import annotations

from paw_fast.compare.results import PairResult
from paw_fast.runs.run_facts import points


def signed(share: float) -> str:
    """A difference of shares in percentage points, without the unit.

    >>> signed(0.0125)
    '+1.2'
    """
    return points(share).removesuffix(" points")


def ends(low: float, high: float) -> str:
    """
    >>> ends(-0.05, 0.1)
    '−5.0 to +10.0'
    """
    return f"{signed(low)} to {signed(high)}"


def sentence(pair: PairResult) -> str:
    """The answer for a pair of arms, with its interval; where they cannot be told apart, the seeds needed."""
    found = pair.success
    sample = f"{_count(found.num_seeds, 'seed')} × {_count(found.num_tasks, 'task')}"
    about = f"95 % interval {ends(found.low, found.high)}, {sample}"
    if found.num_seeds == 1:
        return (
            f"{pair.second} against {pair.first}: {points(found.value)} in final success ({about}); one seed cannot "
            "tell the arms from the luck of a run: give more --seeds"
        )
    about += f"; permutation test p = {p_text(pair)}"
    if pair.told_apart:
        where = "above" if found.value > 0 else "below"
        size = points(abs(found.value)).lstrip("+")
        return f"{pair.second} ends {size} {where} {pair.first} in final success ({about})"
    return f"{pair.second} and {pair.first} cannot be told apart: {points(found.value)} ({about}); {needed(pair)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def p_text(pair: PairResult) -> str:
    """The p-value, with a mark where no smaller one is possible with so few seeds."""
    if pair.p is None or pair.p_smallest is None:
        return "-"
    least = " (the least that is possible)" if pair.p <= pair.p_smallest and pair.p_smallest > 0.05 else ""
    return f"{pair.p:.2g}{least}"


def needed(pair: PairResult) -> str:
    """How many seeds would show the difference that matters, and one as large as the one seen."""
    effect = f"{100 * pair.effect:g} points"
    if not pair.success.seed_variance:
        return "the difference is the same in every seed, so how many would be needed is unknown"
    if pair.needed is None:
        return (
            f"no number of seeds would show a difference of {effect} on these {pair.success.num_tasks} tasks: give "
            "more --eval-tasks"
        )
    text = f"{pair.needed} seeds would show a true difference of {effect} (power 80 %)"
    if pair.needed_observed is not None and pair.needed_observed != pair.needed and pair.success.value:
        text += f", {pair.needed_observed} one of {100 * abs(pair.success.value):.1f} points"
    return text
