"""Micro-batch planning and packing, by hand and by property."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.learner import packing
from paw_fast.types import Span, TokenSequence


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 100))
def test_every_sequence_is_packed_once_and_within_the_budget(lengths, budget):
    batches = packing.plan_micro_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1
    assert batches == packing.plan_micro_batches(lengths, budget)


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 100))
def test_each_sequence_goes_into_the_first_micro_batch_with_room(lengths, budget):
    batches, room = [], []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fit = next((b for b, r in enumerate(room) if r >= lengths[index]), len(room))
        if fit == len(room):
            batches.append([])
            room.append(budget)
        batches[fit].append(index)
        room[fit] -= lengths[index]
    assert packing.plan_micro_batches(lengths, budget) == batches


def test_a_packed_batch_by_hand():
    one = TokenSequence(0, (10, 11, 12, 13, 14), (Span(0, (2, 3), (3, 4), (-0.5,)),))
    two = TokenSequence(1, (20, 21, 22), (Span(1, (1, 3), (), (-0.1, -0.2)),))
    tables = [
        packing.join_rows(packing.action_rows(one), packing.observation_rows(one, [0.25])),
        packing.action_rows(two),
    ]
    batch = packing.pack([one, two], tables, [1, 0], "cpu")
    # Sequence two needs 2 tokens (22 is only a target), sequence one 4.
    assert batch.input_ids.tolist() == [20, 21, 10, 11, 12, 13]
    assert batch.position_ids.tolist() == [0, 1, 0, 1, 2, 3]
    assert batch.lengths == (2, 4)
    assert batch.row_tokens.tolist() == [0, 1, 3, 4, 5]
    assert batch.rows.targets.tolist() == [21, 22, 12, 13, 14]
    assert batch.rows.kinds.tolist() == [1, 1, 1, 2, 2]
    assert batch.rows.weights.tolist() == [0, 0, 0, 0.25, 0.25]
    assert batch.row_counts == (2, 3)


def test_rows_of_unselected_observations_are_left_out():
    sequence = TokenSequence(0, (1, 2, 3, 4, 5, 6), (Span(0, (1, 2), (2,), (0.0,)), Span(1, (3, 4), (4, 5), (0.0,))))
    table = packing.observation_rows(sequence, [0.0, 0.5])
    assert table.positions.tolist() == [4, 5]
    assert np.unique(table.weights).tolist() == [0.5]
