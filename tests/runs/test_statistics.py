"""Tests of confidence intervals against values computed by hand."""

import pytest

from paw_fast.runs.statistics import wilson_interval


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        # 50 of 100: middle 0.51920730, half 1.959964 sqrt(0.0025 + 0.0000960365) = 0.09986273; both / 1.03841459
        (50, 100, 0.403832, 0.596168),
        # 0 of 10: the upper end is z^2/n / (1 + z^2/n) = 0.3841459 / 1.3841459
        (0, 10, 0.0, 0.277533),
        (10, 10, 1 - 0.277533, 1.0),
        # 8 of 10: middle 0.99207294, half 1.959964 sqrt(0.016 + 0.00960365) = 0.31361658; both / 1.3841459
        (8, 10, 0.490162, 0.943318),
        # 1 of 1: 1 / (1 + z^2) = 1 / 4.841459
        (1, 1, 0.206549, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_by_hand(successes, total, low, high):
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("successes", "total"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_interval_refuses_impossible_counts(successes, total):
    with pytest.raises(ValueError, match="expected 0 <= successes <= total"):
        wilson_interval(successes, total)
