"""Computes confidence intervals of success rates and means. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def wilson_interval(successes: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the Wilson score interval (low, high) of a proportion; by default the 95 % interval.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), from Wilson, JASA 22 (1927).
    Both ends are in [0, 1]; the interval is (0, 1) when `total` is 0. Raises `ValueError` unless
    0 <= successes <= total.

    >>> wilson_interval(0, 0)
    (0.0, 1.0)
    """
    if not 0 <= successes <= total:
        raise ValueError(f"got {successes} successes of {total}, expected 0 <= successes <= total")
    if total == 0:
        return 0.0, 1.0
    share, z2n = successes / total, z * z / total
    middle = share + z2n / 2
    half = z * math.sqrt(share * (1 - share) / total + z2n / (4 * total))
    low = 0.0 if successes == 0 else (middle - half) / (1 + z2n)
    high = 1.0 if successes == total else (middle + half) / (1 + z2n)
    return low, high


def newcombe_interval(successes: tuple[int, int], totals: tuple[int, int]) -> tuple[float, float]:
    """Returns the 95 % interval (low, high) of the difference of two proportions, the second minus the first.

    Newcombe's hybrid score interval, method 10 of Statistics in Medicine 17:873 (1998). It treats the proportions as
    independent; for the same tasks played twice it is therefore wider than necessary.

    >>> low, high = newcombe_interval((48, 56), (80, 70))  # example (a) of the paper, with the groups exchanged
    >>> round(low, 4), round(high, 4)
    (0.0524, 0.3339)
    """
    (p1, (l1, u1)), (p2, (l2, u2)) = (
        (won / total if total else 0.5, wilson_interval(won, total))
        for won, total in zip(successes, totals, strict=True)
    )
    difference = p2 - p1
    low = difference - math.hypot(p2 - l2, u1 - p1)
    high = difference + math.hypot(u2 - p2, p1 - l1)
    return max(low, -1.0), min(high, 1.0)


def paired_interval(before: Sequence[int], after: Sequence[int]) -> tuple[float, float]:
    """Returns the 95 % interval (low, high) of the difference of two success rates over the same tasks, after - before.

    Newcombe's square-and-add interval with the phi coefficient, corrected for continuity: method 10 of Statistics in
    Medicine 17:2635 (1998). `before` and `after` hold 1 or 0 for each task. Raises `ValueError` for different lengths.

    >>> low, high = paired_interval([0] * 20, [1] * 10 + [0] * 10)
    >>> round(low, 3), round(high, 3)
    (0.243, 0.701)
    """
    n, pairs = len(before), list(zip(before, after, strict=True))
    both, lost, won, none = (pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0)))
    if n == 0:
        return -1.0, 1.0
    old, new = both + lost, both + won
    (l1, u1), (l2, u2) = wilson_interval(old, n), wilson_interval(new, n)
    p1, p2 = old / n, new / n
    product = old * (n - old) * new * (n - new)
    cross = both * none - lost * won
    if cross > 0:
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(product) if product else 0.0
    down, up = p2 - l2, u2 - p2
    fall, rise = p1 - l1, u1 - p1
    low = p2 - p1 - math.sqrt(max(0.0, down**2 - 2 * phi * down * rise + rise**2))
    high = p2 - p1 + math.sqrt(max(0.0, up**2 - 2 * phi * up * fall + fall**2))
    return max(low, -1.0), min(high, 1.0)


_T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def t_quantile(df: float) -> float:
    """Returns the 97.5 % quantile of Student's t distribution with `df` >= 1 degrees of freedom, to three decimals.

    Between whole numbers of degrees the quantile is interpolated in 1 / df.

    >>> t_quantile(2), round(t_quantile(60), 2)
    (4.303, 2.0)
    """
    if df >= len(_T_QUANTILES):
        return 1.959964 + 2.3724 / df + 2.823 / df**2  # Cornish-Fisher expansion
    below = math.floor(df)
    share = (1 / below - 1 / df) / (1 / below - 1 / (below + 1))
    return _T_QUANTILES[below - 1] + share * (_T_QUANTILES[below] - _T_QUANTILES[below - 1])


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean and the 95 % interval (mean, low, high) by Student's t distribution, of at least two values.

    >>> [round(x, 3) for x in mean_interval([1.0, 2.0, 3.0])]  # 2 +- 4.303 / sqrt(3)
    [2.0, -0.484, 4.484]
    """
    mean = statistics.fmean(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def welch_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Returns the difference of two means, second minus first, and its 95 % interval (difference, low, high).

    Welch's interval (Biometrika 34:28, 1947), of at least two values each.

    >>> [round(x, 3) for x in welch_interval([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])]  # 1 +- 2.776 * sqrt(2 / 3)
    [1.0, -1.267, 3.267]
    """
    difference = statistics.fmean(second) - statistics.fmean(first)
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    if sum(parts) == 0:
        return difference, difference, difference
    df = sum(parts) ** 2 / sum(v * v / (len(x) - 1) for v, x in zip(parts, (first, second), strict=True))
    half = t_quantile(df) * math.sqrt(sum(parts))
    return difference, difference - half, difference + half
