"""Weights of action tokens by hand, and rows of trajectories that are out of the policy loss."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.algorithms.base import Credit
from paw_fast.algorithms.world_model import WorldModelWeights, token_weights
from paw_fast.kernels import POLICY, WORLD_MODEL
from paw_fast.learner.loss_rows import action_weights, build_tables
from paw_fast.learner.packing import pack
from paw_fast.types import Span, TokenSequence, TokenStats


def test_by_hand():
    assert action_weights([1, 3], "token-mean", 8) == [0.25, 0.25]
    assert action_weights([1, 3, 0], "sequence-mean", 8) == [0.5, pytest.approx(1 / 6), 0.0]
    assert action_weights([1, 3], "constant-length", 8) == [1 / 16, 1 / 16]
    with pytest.raises(ValueError, match="aggregation is 'mean'"):
        action_weights([1], "mean", 1)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
def test_means_are_means(counts):
    for how in ("token-mean", "sequence-mean"):
        total = sum(n * w for n, w in zip(counts, action_weights(counts, how, 9), strict=True))
        assert total == pytest.approx(1.0)


def sequence(trajectory, transition):
    """Three action tokens at 2 to 4, two observation tokens at 5 and 6."""
    return TokenSequence(trajectory, (9, 9, 1, 2, 3, 4, 5), (Span(transition, (2, 5), (5, 6), (-1.0,) * 3),))


def test_a_trajectory_outside_the_policy_loss_still_teaches_the_world_model():
    sequences = [sequence(0, 0), sequence(1, 1)]
    stats = TokenStats([np.full(3, -0.5), np.full(3, -0.7)], None, None, [])
    credit = Credit([np.full(3, 2.0, np.float32)] * 2, np.array([True, False]))
    both = np.array([True, True])
    world_model = WorldModelWeights(np.array([0.5, 1.0]), both, both)
    first, second = build_tables(sequences, stats, credit, world_model)
    assert first.kinds.tolist() == [POLICY] * 3 + [WORLD_MODEL] * 2
    assert first.sources.tolist() == [-1] * 3 + [0, 1]
    assert first.old_logprobs.tolist() == pytest.approx([-0.5] * 3 + [0.0] * 2)
    assert second.kinds.tolist() == [WORLD_MODEL] * 2
    assert second.sources.tolist() == [2, 3]
    cpu = torch.device("cpu")
    rows = pack(sequences, [first, second], [0, 1], cpu, token_weights(world_model, sequences, cpu)).rows
    assert rows.weights.tolist() == pytest.approx([1 / 3] * 3 + [0.5 / 4] * 2 + [1.0 / 4] * 2)


def test_a_sequence_may_be_left_without_a_row():
    stats = TokenStats([np.zeros(3)], None, None, [])
    credit = Credit([np.zeros(3, np.float32)], np.array([False]))
    nothing = WorldModelWeights(np.ones(1), np.array([False]), np.array([True]))
    (table,) = build_tables([sequence(0, 0)], stats, credit, nothing)
    assert len(table.positions) == 0
