"""Selection and the weight of the world-model loss, against hand-computed numbers."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.algorithms.world_model import group_lambdas, select, select_transitions
from paw_fast.config import load_preset
from paw_fast.types import EpisodeId, RolloutBatch, Span, Task, TokenSequence, TokenStats, Trajectory, Transition


def test_selection_by_hand():
    entropies = np.array([0.3, 2.0, 0.1, 2.0, 1.0])
    assert select_transitions(entropies, 0.75).tolist() == [False, True, False, True, True]  # floor(3.75) = 3
    assert select_transitions(entropies, 0.2).tolist() == [False, True, False, False, False]  # the tie: lower index
    assert select_transitions(entropies, 0.01).sum() == 1  # at least one
    assert select_transitions(entropies, 0.4, "lowest").tolist() == [True, False, True, False, False]
    assert select_transitions(entropies, 0.2, "all").all()
    assert select_transitions(np.zeros(0), 0.5).tolist() == []


def test_share_is_not_lost_to_rounding():
    for total in (10, 30, 70, 100):
        assert select_transitions(np.arange(float(total)), 0.7).sum() == total * 7 // 10


@given(st.lists(st.floats(0, 20), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_selected_are_never_below_the_rest(entropies, alpha):
    array = np.array(entropies)
    chosen = select_transitions(array, alpha)
    assert chosen.sum() == max(1, math.floor(alpha * len(array) + 1e-9))
    if not chosen.all():
        assert array[chosen].min() >= array[~chosen].max()


def test_random_selection_depends_on_the_seed_alone():
    array = np.arange(40.0)
    assert (select_transitions(array, 0.5, "random", 3) == select_transitions(array[::-1], 0.5, "random", 3)).all()
    assert (select_transitions(array, 0.5, "random", 3) != select_transitions(array, 0.5, "random", 4)).any()


@pytest.mark.parametrize(("alpha", "mode"), [(0.0, "entropy"), (1.1, "entropy"), (0.5, "best")])
def test_bad_settings_are_refused(alpha, mode):
    with pytest.raises(ValueError, match="expected"):
        select_transitions(np.ones(3), alpha, mode)


def test_nan_entropy_is_refused_by_number():
    with pytest.raises(ValueError, match="number 1 of 3"):
        select_transitions(np.array([1.0, np.nan, 2.0]), 0.5)


def test_lambdas_by_hand():
    returns, groups = np.array([10.0, 0.0, 10.0, 10.0, 0.0, 0.0]), np.array([5, 5, 1, 1, 3, 3])
    assert group_lambdas(returns, groups, 10.0).tolist() == [0.5, 0.5, 0.0, 0.0, 1.0, 1.0]
    assert group_lambdas(returns, groups, 10.0, lambda_0=0.4).tolist() == [0.2, 0.2, 0.0, 0.0, 0.4, 0.4]
    assert group_lambdas(returns, groups, 10.0, 0.05, "fixed").tolist() == [0.05] * 6
    # Outside [0, R_max] it is clamped.
    assert group_lambdas(np.array([-5.0, 20.0]), np.array([0, 1]), 10.0).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="max_return"):
        group_lambdas(returns, groups, 0.0)


@pytest.mark.parametrize(("mode", "picked"), [("surprise", 2), ("entropy", 0), ("lowest", 2)])
def test_surprise_selects_by_the_sampled_tokens_and_entropy_by_the_distribution(mode, picked):
    turn = Transition((1,), (2,), (-1.0,), (3,), (True,), "c", "o", "s", 0.0, True)
    trajectory = Trajectory(Task("t"), EpisodeId(0, 0, 0), (turn,) * 3, 0.0, 0.0, False)
    sequences = tuple(TokenSequence(0, (1, 2, 3), (Span(i, (1, 2), (2,), (-1.0,)),)) for i in range(3))
    batch = RolloutBatch((trajectory,), sequences)
    # Surprises by hand: (2.9 + 0.1) / 2 = 1.5, 0.5 and 2.0; a sum over tokens would prefer the first.
    logprobs = [np.array(row) for row in ([-2.9, -0.1], [-0.5], [-2.0])]
    stats = TokenStats(logprobs, None, None, [torch.tensor([0.9, 0.9]), torch.tensor([0.5, 0.1])])
    config = load_preset("tiny")
    config = dataclasses.replace(config, paw=dataclasses.replace(config.paw, alpha=0.4, selection=mode))
    weights = select(batch, stats, config, 0)
    assert weights is not None
    assert np.flatnonzero(weights.selected).tolist() == [picked]
