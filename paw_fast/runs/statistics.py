"""Computes confidence intervals of success rates. Imports no torch."""

from __future__ import annotations

import math


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
