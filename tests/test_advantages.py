"""GRPO's advantages against hand-computed numbers and an independent float64 loop."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.advantages import grpo_advantages


def test_hand_computed_example():
    returns = torch.tensor([10.0, 0.0, 10.0, 0.0, 3.0, 5.0])
    groups = torch.tensor([7, 7, 7, 7, 2, 2])
    # Group 7: mean 5, sample std sqrt(4 * 25 / 3) = 5.7735; group 2: mean 4, std sqrt(2).
    a, b = 5 / (5.773502691896258 + 1e-6), 1 / (math.sqrt(2) + 1e-6)
    got = grpo_advantages(returns, groups)
    torch.testing.assert_close(got, torch.tensor([a, -a, a, -a, -b, b]))
    torch.testing.assert_close(
        grpo_advantages(returns, groups, normalize_std=False), torch.tensor([5.0, -5, 5, -5, -1, 1])
    )


def test_one_element_groups_and_equal_returns_are_exactly_zero():
    assert grpo_advantages(torch.tensor([3.0, 7.0]), torch.tensor([0, 1])).tolist() == [0.0, 0.0]
    equal = torch.full((7,), 0.1)
    assert grpo_advantages(equal, torch.zeros(7, dtype=torch.long)).tolist() == [0.0] * 7


def test_lengths_must_match():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        grpo_advantages(torch.zeros(3), torch.zeros(2))


rewards = st.lists(
    st.tuples(st.integers(-1000, 1000).map(lambda i: i / 10), st.integers(0, 3)), min_size=1, max_size=24
)


@given(rewards)
def test_matches_a_plain_loop(rows):
    returns, groups = zip(*rows, strict=True)
    got = grpo_advantages(torch.tensor(returns, dtype=torch.float64), torch.tensor(groups)).tolist()
    for value, r, g in zip(got, returns, groups, strict=True):
        members = [x for x, k in rows if k == g]
        std = statistics.stdev(members) if len(members) > 1 else 0.0
        expected = (r - statistics.fmean(members)) / (std + 1e-6)
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(rewards, st.integers(-50, 50), st.integers(1, 20), st.randoms(use_true_random=False))
def test_shift_scale_and_permutation(rows, shift, scale, random):
    returns = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    groups = torch.tensor([g for _, g in rows])
    base = grpo_advantages(returns, groups)
    torch.testing.assert_close(grpo_advantages(returns * scale + shift, groups), base, atol=1e-4, rtol=1e-4)
    order = torch.tensor(random.sample(range(len(rows)), len(rows)))
    torch.testing.assert_close(grpo_advantages(returns[order], groups[order]), base[order], atol=1e-6, rtol=1e-5)
