"""Every advantage function against hand-computed numbers and an independent float64 loop."""

import math
import statistics
from difflib import SequenceMatcher

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.algorithms.advantages import (
    discounted_returns,
    gae,
    gigpo_advantages,
    grpo_advantages,
    rloo_advantages,
    step_groups,
    whiten,
)


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


# ---------------------------------------------------------------------------------------------------- RLOO


def test_rloo_by_hand():
    returns, groups = torch.tensor([4.0, 1.0, 1.0, 7.0]), torch.tensor([0, 0, 0, 5])
    # 4 - (1 + 1) / 2, 1 - (4 + 1) / 2 twice; alone in its group: nothing to compare with.
    assert rloo_advantages(returns, groups).tolist() == [3.0, -1.5, -1.5, 0.0]


@given(rewards, st.integers(-50, 50))
def test_rloo_is_the_leave_one_out_mean_and_ignores_a_shift(rows, shift):
    returns = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    groups = torch.tensor([g for _, g in rows])
    got = rloo_advantages(returns, groups)
    for i, (r, g) in enumerate(rows):
        others = [x for j, (x, k) in enumerate(rows) if k == g and j != i]
        expected = r - statistics.fmean(others) if others else 0.0
        assert got[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(rloo_advantages(returns + shift, groups), got, atol=1e-4, rtol=1e-5)
    for g in set(groups.tolist()):
        assert float(got[groups == g].double().sum()) == pytest.approx(0.0, abs=1e-3)


# --------------------------------------------------------------------------------------------------- GiGPO


def test_returns_to_go_by_hand():
    rewards_, episodes = torch.tensor([1.0, 0.0, 4.0, 2.0, 2.0]), torch.tensor([3, 3, 3, 8, 8])
    assert discounted_returns(rewards_, episodes, 0.5).tolist() == [2.0, 2.0, 4.0, 3.0, 2.0]
    assert discounted_returns(rewards_, episodes, 0.0).tolist() == rewards_.tolist()
    with pytest.raises(ValueError, match=r"gamma is 1\.5"):
        discounted_returns(rewards_, episodes, 1.5)


def test_anchor_groups_join_equal_states_of_one_group_alone():
    groups = torch.tensor([0, 0, 0, 1, 1, 0])
    anchors = ["kitchen", "hall", "kitchen", "kitchen", "hall", "kitchen"]
    assert step_groups(groups, anchors).tolist() == [0, 1, 0, 2, 3, 0]
    assert step_groups(torch.zeros(0, dtype=torch.long), []).tolist() == []
    with pytest.raises(ValueError, match=r"groups \(6,\) and 2 anchors"):
        step_groups(groups, ["a", "b"])


@given(
    st.lists(st.tuples(st.integers(0, 1), st.text("abcä \U0001f600\ud800", max_size=12)), max_size=25),
    st.sampled_from([0.01, 0.5, 0.75, 0.9, 1.0]),
)
def test_similar_states_are_those_of_difflib(states, least):
    leaders, expected = [], []
    for group, text in states:
        similar = lambda a: SequenceMatcher(None, a, text, autojunk=False).ratio() >= least  # noqa: B023, E731
        same = next((n for n, (g, t) in enumerate(leaders) if g == group and (t == text or similar(t))), None)
        known = next((n for (g, t), n in zip(states, expected, strict=False) if (g, t) == (group, text)), same)
        if known is None:
            known = len(leaders)
            leaders.append((group, text))
        expected.append(known)
    groups = torch.tensor([group for group, _ in states], dtype=torch.int64)
    assert step_groups(groups, [text for _, text in states], similarity=least).tolist() == expected


def test_similar_states_join_the_first_that_is_similar_enough():
    groups = torch.tensor([0, 0, 0, 1])
    anchors = ["the red mug is here", "the red mug is there", "an empty shelf", "the red mug is here"]
    # ratio("... here", "... there") = 2 * 19 / 39 = 0.974
    assert step_groups(groups, anchors, similarity=0.95).tolist() == [0, 0, 1, 2]
    assert step_groups(groups, anchors, similarity=0.98).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="similarity is 0"):
        step_groups(groups, anchors, similarity=0.0)


def test_gigpo_by_hand():
    # Two episodes of one group: episode advantages 1 and -1; they share their first state and no other.
    episode = torch.tensor([1.0, 1.0, -1.0, -1.0])
    to_go = torch.tensor([9.5, 10.0, 0.0, 0.0])
    anchors = torch.tensor([0, 1, 0, 2])
    # Anchor group 0: returns 9.5 and 0, centred 4.75 and -4.75, sample std 9.5 / sqrt(2).
    step = 4.75 / (9.5 / math.sqrt(2) + 1e-6)
    got = gigpo_advantages(episode, to_go, anchors, weight=0.5)
    torch.testing.assert_close(got, torch.tensor([1 + 0.5 * step, 1.0, -1 - 0.5 * step, -1.0]))
    mean_only = gigpo_advantages(episode, to_go, anchors, weight=1.0, normalize_std=False)
    torch.testing.assert_close(mean_only, torch.tensor([5.75, 1.0, -5.75, -1.0]))
    torch.testing.assert_close(gigpo_advantages(episode, to_go, anchors, weight=0.0), episode)


def test_gigpo_with_states_that_never_repeat_is_the_episode_part():
    episode = torch.tensor([0.3, 0.3, -0.3])
    assert gigpo_advantages(episode, torch.tensor([5.0, 6.0, 7.0]), torch.arange(3)).tolist() == episode.tolist()


@given(rewards, st.integers(-20, 20), st.randoms(use_true_random=False))
def test_step_advantages_ignore_shift_and_order(rows, shift, random):
    to_go = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    anchors = torch.tensor([g for _, g in rows])
    zero = torch.zeros(len(rows))
    base = gigpo_advantages(zero, to_go, anchors)
    torch.testing.assert_close(gigpo_advantages(zero, to_go + shift, anchors), base, atol=1e-4, rtol=1e-4)
    order = torch.tensor(random.sample(range(len(rows)), len(rows)))
    torch.testing.assert_close(gigpo_advantages(zero, to_go[order], anchors[order]), base[order], atol=1e-6, rtol=1e-5)


# ----------------------------------------------------------------------------------------------------- PPO


def test_gae_by_hand():
    # One episode of three tokens, gamma 0.5, lambda 0.5, reward 8 at the end; a second one of a single token.
    rewards_ = torch.tensor([0.0, 0.0, 8.0, 1.0])
    values = torch.tensor([1.0, 2.0, 4.0, 3.0])
    episodes = torch.tensor([0, 0, 0, 1])
    # delta: 0 + 0.5 * 2 - 1 = 0; 0 + 0.5 * 4 - 2 = 0; 8 - 4 = 4. A: 0 + 0.25 * 1 = 0.25; 0 + 0.25 * 4 = 1; 4.
    advantages, targets = gae(rewards_, values, episodes, 0.5, 0.5)
    assert advantages.tolist() == [0.25, 1.0, 4.0, -2.0]
    assert targets.tolist() == [1.25, 3.0, 8.0, 1.0]
    with pytest.raises(ValueError, match="lambda is 2"):
        gae(rewards_, values, episodes, 0.5, 2.0)
    with pytest.raises(ValueError, match="one length"):
        gae(rewards_, values[:2], episodes, 0.5, 0.5)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.booleans()), min_size=1, max_size=30),
       st.floats(0, 1), st.floats(0, 1))  # fmt: skip
def test_gae_is_the_discounted_sum_of_temporal_differences(rows, gamma, lam):
    rewards_, values, starts = zip(*rows, strict=True)
    episodes = [sum(starts[: i + 1]) for i in range(len(rows))]
    advantages, targets = gae(
        torch.tensor(rewards_, dtype=torch.float64), torch.tensor(values, dtype=torch.float64),
        torch.tensor(episodes), gamma, lam,
    )  # fmt: skip
    last = {e: i for i, e in enumerate(episodes)}
    delta = [
        r + gamma * (values[i + 1] if i != last[e] else 0.0) - v
        for i, (r, v, e) in enumerate(zip(rewards_, values, episodes, strict=True))
    ]
    for t, e in enumerate(episodes):
        expected = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, last[e] + 1))
        assert advantages[t].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert targets[t].item() == pytest.approx(expected + values[t], rel=1e-4, abs=1e-4)


def test_whitening_is_verls_and_leaves_noise_small():
    # mean 3, sum of squares 14, var 14 / 2 = 7 (n - 1, as verl's masked_var).
    expected = [x / math.sqrt(7 + 1e-8) for x in (-2.0, -1.0, 3.0)]
    assert whiten(torch.tensor([1.0, 2.0, 6.0])).tolist() == pytest.approx(expected, rel=1e-6)
    # Values that differ by 1e-6: var 2e-12 / 3 * ..., and rsqrt(var + 1e-8) is 1e4 within 0.01 %.
    noise = torch.tensor([1e-6, -1e-6, 1e-6, -1e-6], dtype=torch.float64)
    assert whiten(noise).tolist() == pytest.approx([0.01, -0.01, 0.01, -0.01], rel=1e-3)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40))
def test_whitened_advantages_have_mean_zero_and_std_one(values):
    got = whiten(torch.tensor(values)).double()
    if len({float(torch.tensor(v)) for v in values}) == 1:
        assert got.tolist() == [0.0] * len(values)
    elif statistics.stdev(values) > 1e-2:
        assert float(got.mean()) == pytest.approx(0.0, abs=1e-4)
        assert float(got.std()) == pytest.approx(1.0, abs=1e-3)
