"""Computes intervals and tests of paired differences over seeds and tasks. Imports no torch.

Two arms that were trained with the same seeds and evaluated on the same tasks give a table of differences D [n, m]: for
each of n seeds and m tasks, the outcome of one arm minus that of the other. Seeds and tasks are both samples (of the
runs that could have been, and of the tasks that could have been asked), and they are crossed: every seed plays the same
tasks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paw_fast.runs.statistics import t_quantile

Z_975, Z_80 = 1.959964, 0.841621
"""Quantiles of the standard normal distribution: 97.5 % and 80 %."""

_MOST_EXACT = 14


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference over seeds and tasks, with its 95 % interval. Produced by `two_way_interval`.

    value, low, high  the mean of the table and the ends of the interval
    df                degrees of freedom of the t quantile
    seed_variance     variance of a seed's mean difference, the noise of its m tasks included: (MS_seeds or, if larger,
                      MS_error) / m; None for a single seed, which says nothing about others
    task_variance     what the choice of tasks adds to the variance of the mean, however many seeds there are
    num_seeds, num_tasks

    >>> two_way_interval([[1, 0, 1, 0], [1, 0, 1, 0]]).value
    0.5
    """

    value: float
    low: float
    high: float
    df: float
    seed_variance: float | None
    task_variance: float
    num_seeds: int
    num_tasks: int

    @property
    def exceeds_interval(self) -> bool:
        """Whether the interval does not contain 0."""
        return not self.low <= 0 <= self.high


def two_way_interval(table: Sequence[Sequence[float]] | np.ndarray) -> PairedDifference:
    """Returns the mean of D [n, m] (n >= 1 seeds, m >= 2 tasks) and its 95 % interval over seeds and tasks.

    The variance of the mean is sigma_s^2/n + sigma_t^2/m + sigma_e^2/(nm). With the mean squares of the two-way table
    (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4) it is estimated by

        (max(MS_s, MS_e) + max(MS_t, MS_e) - MS_e) / (nm)

    which is the limit, for many draws, of the variance of resampling seeds, plus that of resampling tasks, minus that
    of resampling cells (Cameron, Gelbach and Miller, Journal of Business & Economic Statistics 29:238, 2011), with the
    factors n/(n-1) and m/(m-1). The quantile is Student's t with the degrees of freedom of Satterthwaite (Biometrics
    Bulletin 2:110, 1946). For n = 1 the interval is over the tasks alone.

    Raises `ValueError` for a table without two dimensions or with fewer than two tasks.
    """
    d = np.asarray(table, dtype=np.float64)
    if d.ndim != 2 or d.shape[0] < 1 or d.shape[1] < 2:
        raise ValueError(f"got a table of shape {d.shape}, expected [seeds, tasks] with at least 1 and 2")
    n, m = d.shape
    mean = float(d.mean())
    if n == 1:
        variance = float(d.var(ddof=1)) / m
        half = t_quantile(m - 1) * math.sqrt(variance)
        return PairedDifference(mean, mean - half, mean + half, m - 1, None, variance, n, m)
    rows, columns = d.mean(axis=1), d.mean(axis=0)
    rest = d - rows[:, None] - columns[None, :] + mean
    ms_e = float((rest**2).sum()) / ((n - 1) * (m - 1))
    ms_s = max(m * float(rows.var(ddof=1)), ms_e)
    ms_t = max(n * float(columns.var(ddof=1)), ms_e)
    parts = ((ms_s, n - 1), (ms_t, m - 1), (ms_e, (n - 1) * (m - 1)))
    variance = (ms_s + ms_t - ms_e) / (n * m)
    spread = sum((ms / (n * m)) ** 2 / df for ms, df in parts)
    df = max(1.0, variance**2 / spread) if spread else float((n - 1) * (m - 1))
    half = t_quantile(df) * math.sqrt(variance)
    return PairedDifference(mean, mean - half, mean + half, df, ms_s / m, (ms_t - ms_e) / (n * m), n, m)


def bootstrap_interval(
    table: Sequence[Sequence[float]] | np.ndarray, draws: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Returns the 95 % percentile interval (low, high) of the mean of D [n, m] by a paired bootstrap over both.

    Each draw takes n seeds and m tasks with replacement and averages the cells where they meet (the bootstrap of
    crossed data: Owen, Annals of Applied Statistics 1:386, 2007). With fewer than about ten seeds its coverage depends
    on where the noise comes from: see `docs/howto/compare.md`.
    """
    d = np.asarray(table, dtype=np.float64)
    n, m = d.shape
    rng = np.random.default_rng(seed)
    seeds = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n  # [draws, n] weights
    tasks = rng.multinomial(m, np.full(m, 1 / m), size=draws) / m  # [draws, m]
    means = ((seeds @ d) * tasks).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_test(differences: Sequence[float], draws: int = 20_000, seed: int = 0) -> tuple[float, float]:
    """Returns the two-sided p-value of a paired permutation test, and the smallest that so many pairs can give.

    differences: of each seed, one arm minus the other. If the arms were the same, each difference could as well have
    the other sign (Fisher, The Design of Experiments, 1935, section 21): p is the share of the 2^n choices of signs
    whose mean is at least as far from 0. Of more than 14 pairs `draws` random choices are taken, and p is (1 + those at
    least as far) / (1 + draws), as in Phipson and Smyth (2010).

    >>> sign_flip_test([0.1, 0.2, 0.3])  # +++ and --- are as far, of 8
    (0.25, 0.25)
    """
    d = np.asarray(differences, dtype=np.float64)
    observed = abs(d.sum()) - 1e-12 * max(1.0, float(np.abs(d).sum()))
    if len(d) <= _MOST_EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(d))))
        return float((np.abs(signs @ d) >= observed).mean()), 2.0 / 2 ** len(d)
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(draws, len(d)))
    return float((1 + (np.abs(signs @ d) >= observed).sum()) / (1 + draws)), 1 / (1 + draws)


def seeds_needed(found: PairedDifference, effect: float) -> int | None:
    """Returns how many seeds show a true difference of `effect` with a power of 80 % at the level of 5 %.

    n = (z_0.975 + z_0.8)^2 v / (effect^2 - (z_0.975 + z_0.8)^2 t) + z_0.975^2 / 2, rounded up, at least 2: the sample
    size of a paired t test with its small-sample term (Guenther, The American Statistician 35:243, 1981), with the
    variance v of a seed's difference and the part t of the tasks, which more seeds do not make smaller. None where no
    number of seeds suffices: then more evaluation tasks are needed. Raises `ValueError` for a single seed.

    >>> seeds_needed(PairedDifference(0.0, -0.1, 0.1, 4, 0.01, 0.0, 5, 100), 0.1)  # 7.849 + 1.921
    10
    """
    if found.seed_variance is None:
        raise ValueError("the variance over seeds is unknown after a single seed")
    factor = (Z_975 + Z_80) ** 2
    room = effect**2 - factor * found.task_variance
    if room <= 0:
        return None
    return max(2, math.ceil(factor * found.seed_variance / room + Z_975**2 / 2))


def correlation_interval(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Returns Pearson's correlation of n >= 4 pairs and its 95 % interval (r, low, high).

    tanh(artanh(r) +- 1.96 / sqrt(n - 3)): Fisher, Metron 1 (1921). Where one of the two does not vary, the correlation
    is not defined: (nan, -1, 1). Raises `ValueError` for fewer pairs.

    >>> r, low, high = correlation_interval([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    >>> round(r, 3), round(low, 3), round(high, 3)  # artanh(0.8) = 1.0986, +- 1.3859
    (0.8, -0.28, 0.986)
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) != len(b) or len(a) < 4:
        raise ValueError(f"got {len(a)} and {len(b)} values, expected at least 4 pairs")
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    if size < 1e-15:
        return math.nan, -1.0, 1.0
    r = max(-1.0, min(1.0, float(a @ b) / size))
    if abs(r) > 1 - 1e-12:
        return r, r, r
    half = Z_975 / math.sqrt(len(a) - 3)
    return r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


# ------------------------------------------------------------------------------------------------- curves


def area_under_curve(steps: Sequence[float], values: Sequence[float]) -> float:
    """Returns the mean height of a curve between its first and last step, by the trapezoidal rule.

    >>> area_under_curve([0, 10, 20], [0.0, 0.5, 0.5])
    0.375
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return float(y.mean())
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def steps_to_reach(steps: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """Returns where a curve first reaches `level`, with straight lines between its points; None if it does not.

    >>> steps_to_reach([0, 10, 20], [0.1, 0.3, 0.5], 0.4), steps_to_reach([0, 10], [0.1, 0.3], 0.4)
    (15.0, None)
    """
    before: tuple[float, float] | None = None
    for step, value in zip(steps, values, strict=True):
        if value >= level:
            if before is None or value == before[1]:
                return float(step)
            return float(before[0] + (level - before[1]) / (value - before[1]) * (step - before[0]))
        before = (step, value)
    return None
