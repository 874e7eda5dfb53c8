"""Statistics of paired arms: hand-computed numbers, exact enumeration, and coverage by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.compare.paired import (
    PairedDifference,
    area_under_curve,
    bootstrap_interval,
    seeds_needed,
    sign_flip_test,
    steps_to_reach,
    two_way_interval,
)

TABLE = [[1, 0, 1], [0, 0, 1]]
"""Mean 1/2. Rows 2/3 and 1/3, columns 1/2, 0, 1; what is left: +-(1/3, -1/6, -1/6), whose squares sum to 1/3."""


def test_two_way_variance_by_hand():
    found = two_way_interval(TABLE)
    # MS_seeds = 3 * ((1/6)^2 + (1/6)^2) = 1/6; MS_tasks = 2 * (0 + 1/4 + 1/4) / 2 = 1/2; MS_error = 1/3 / 2 = 1/6
    assert found.value == pytest.approx(1 / 2)
    assert found.seed_variance == pytest.approx(1 / 6 / 3)
    assert found.task_variance == pytest.approx((1 / 2 - 1 / 6) / 6)
    variance = (1 / 6 + 1 / 2 - 1 / 6) / 6
    df = variance**2 / ((1 / 36) ** 2 / 1 + (1 / 12) ** 2 / 2 + (1 / 36) ** 2 / 2)
    assert found.df == pytest.approx(df)
    assert 1 < df < 2  # 1.5: between the quantiles 12.706 and 4.303
    assert found.high - 0.5 == pytest.approx(0.5 - found.low)
    assert 4.303 * math.sqrt(variance) < found.high - 0.5 < 12.706 * math.sqrt(variance)


def test_the_interval_is_students_where_only_seeds_vary():
    """Without noise of tasks the table is its seeds: 0.2 +- 4.303 * 0.1 / sqrt(3)."""
    found = two_way_interval(np.repeat([[0.1], [0.2], [0.3]], 50, axis=1))
    assert (found.value, found.df) == (pytest.approx(0.2), pytest.approx(2))
    assert found.high - found.value == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert found.task_variance == pytest.approx(0)


def test_one_seed_has_the_interval_of_its_tasks():
    found = two_way_interval([[1.0, 0.0, 0.0, -1.0, 1.0]])
    assert found.seed_variance is None
    assert found.high - found.value == pytest.approx(2.776 * math.sqrt(0.7 / 5))  # variance (4 * 0.2^2... = 0.7)
    assert not two_way_interval([[0.0, 0.0]]).exceeds_interval


@pytest.mark.parametrize("table", [[1.0, 2.0], [[1.0], [2.0]], np.zeros((0, 3))])
def test_tables_that_are_refused(table):
    with pytest.raises(ValueError, match="expected \\[seeds, tasks\\]"):
        two_way_interval(table)


def outcomes(rng, seeds, tasks, seed_sd, task_sd):
    """Differences of two equal arms: success depends on the task, the seed's luck and what an arm finds hard."""
    hard = rng.normal(0, 1, tasks)
    arms = []
    for _ in range(2):
        score = hard + rng.normal(0, task_sd, tasks) + rng.normal(0, seed_sd, (seeds, 1))
        arms.append(rng.random((seeds, tasks)) < 1 / (1 + np.exp(-score)))
    return arms[1].astype(float) - arms[0]


@pytest.mark.parametrize(("seed_sd", "task_sd"), [(0.0, 0.0), (0.3, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_coverage(seeds, seed_sd, task_sd):
    """At least 93 % of the 95 % intervals contain the truth: of 800, a share of 95 % has a standard error of 0.8 %."""
    rng = np.random.default_rng([seeds, int(10 * seed_sd)])
    found = [two_way_interval(outcomes(rng, seeds, 60, seed_sd, task_sd)) for _ in range(800)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.93


def test_the_interval_is_not_needlessly_wide():
    """With seeds as the main noise, coverage is near 95 % and not above 98 %."""
    rng = np.random.default_rng(3)
    found = [two_way_interval(outcomes(rng, 5, 60, 1.0, 0.0)) for _ in range(800)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) <= 0.98


def test_bootstrap_agrees_with_all_resamples():
    """All 2^2 * 3^3 resamples of the table, each as likely, against random draws."""
    table = np.array(TABLE, dtype=float)
    exact = sorted(
        table[np.ix_(rows, columns)].mean()
        for rows in itertools.product(range(2), repeat=2)
        for columns in itertools.product(range(3), repeat=3)
    )
    low, high = np.quantile(exact, [0.025, 0.975])
    assert bootstrap_interval(table, draws=20_000) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert bootstrap_interval(table) == bootstrap_interval(table)


def test_sign_flips_by_hand():
    assert sign_flip_test([0.1, 0.1, 0.1, 0.1, 0.1]) == (2 / 32, 2 / 32)
    # Sums of +-1 +-2 +-3 at least as far from 0 as 1 + 2 - 3 = 0: all
    assert sign_flip_test([1, 2, -3]) == (1.0, 0.25)
    # 4 is reached by +-(1 + 2 + 3) = 6 and +-(-1 + 2 + 3) = 4
    assert sign_flip_test([-1, 2, 3]) == (0.5, 0.25)


def test_many_pairs_are_drawn_at_random():
    p, smallest = sign_flip_test([1.0] * 20)
    assert (p, smallest) == (1 / 20_001, 1 / 20_001)
    exact, _ = sign_flip_test([0.3, -0.1, 0.2, 0.4, -0.2, 0.1, 0.3, -0.3, 0.2, 0.1, 0.0, 0.2, 0.1, -0.1])
    drawn, _ = sign_flip_test([0.3, -0.1, 0.2, 0.4, -0.2, 0.1, 0.3, -0.3, 0.2, 0.1, 0.0, 0.2, 0.1, -0.1, 0.0])
    assert drawn == pytest.approx(exact, abs=0.02)  # a difference of 0 changes nothing


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_p_is_at_least_the_smallest_possible(differences):
    p, smallest = sign_flip_test(differences)
    assert smallest <= p <= 1


def difference(seed_variance, task_variance):
    return PairedDifference(0.0, -1.0, 1.0, 4.0, seed_variance, task_variance, 5, 100)


def test_seeds_needed_by_hand():
    # (1.959964 + 0.841621)^2 = 7.848879; 7.848879 * 0.01 / 0.05^2 = 31.40; plus 1.9208: 33.32
    assert seeds_needed(difference(0.01, 0.0), 0.05) == 34
    # tasks: 0.05^2 - 7.848879 * 0.0001 = 0.00171511; 0.07848879 / 0.00171511 = 45.76; plus 1.9208: 47.68
    assert seeds_needed(difference(0.01, 0.0001), 0.05) == 48
    assert seeds_needed(difference(0.01, 0.0004), 0.05) is None
    assert seeds_needed(difference(0.0, 0.0), 0.05) == 2
    with pytest.raises(ValueError, match="single seed"):
        seeds_needed(difference(None, 0.0), 0.05)


def test_so_many_seeds_have_the_power():
    """Of paired t tests with the computed number of seeds, about 80 % find the difference."""
    n = seeds_needed(difference(0.01, 0.0), 0.1)
    assert n is not None
    rng = np.random.default_rng(0)
    d = rng.normal(0.1, 0.1, (4000, n))
    half = 2.262 * d.std(axis=1, ddof=1) / math.sqrt(n)  # t quantile of 9 degrees of freedom
    assert n == 10
    assert np.mean(d.mean(axis=1) - half > 0) == pytest.approx(0.8, abs=0.03)


def test_areas_and_levels():
    assert area_under_curve([0, 1, 3], [0.0, 1.0, 0.0]) == pytest.approx((0.5 + 1.0) / 3)
    assert area_under_curve([5], [0.4]) == 0.4
    assert steps_to_reach([0, 10], [0.5, 0.2], 0.5) == 0.0
    assert steps_to_reach([0, 4, 8], [0.1, 0.1, 0.5], 0.2) == 5.0
    assert steps_to_reach([], [], 0.2) is None
