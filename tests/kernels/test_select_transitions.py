"""Op (d): the selection by hand, its ties, and its weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast import kernels as K


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def test_by_hand():
    # means 2, 1, 3, and none: the two highest are 2 and 0; they own 1 + 2 observation tokens
    got = K.select_transitions(
        torch.tensor([1.0, 3.0, 1.0, 3.0]),
        offsets([2, 1, 1, 0]),
        offsets([2, 4, 1, 1]),
        torch.tensor([1.0, 1.0, 0.5, 1.0]),
        0.5,
        8,
    )
    assert got.mean_entropies.tolist() == [2.0, 1.0, 3.0, 0.0]
    assert got.selected.tolist() == [True, False, True, False]
    torch.testing.assert_close(got.wm_weights, torch.tensor([1, 1, 0, 0, 0, 0, 0.5, 0]) / 3)
    assert got.num_wm_tokens.item() == 3


@pytest.mark.parametrize("mode", ["entropy", "lowest"])
def test_ties_go_to_the_lower_index(mode):
    got = K.select_transitions(torch.ones(6), offsets([1] * 6), offsets([1] * 6), torch.ones(6), 0.5, 6, mode=mode)
    assert got.selected.tolist() == [True] * 3 + [False] * 3


def test_lowest_and_random():
    args = (torch.tensor([3.0, 1.0, 2.0]), offsets([1] * 3), offsets([1] * 3), torch.ones(3), 0.34, 3)
    assert K.select_transitions(*args, mode="lowest").selected.tolist() == [False, True, False]
    picked = [
        K.select_transitions(*args, mode="random", generator=torch.Generator().manual_seed(s)).selected
        for s in (0, 0, 1, 2, 3)
    ]
    assert all(int(p.sum()) == 1 for p in picked)
    assert torch.equal(picked[0], picked[1])
    assert len({tuple(p.tolist()) for p in picked}) > 1


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=20), alpha=st.floats(0.01, 1.0), seed=st.integers(0, 99)
)
def test_against_plain_python(lengths, alpha, seed):
    torch.manual_seed(seed)
    entropies = torch.rand(sum(lengths)).round(decimals=1)
    lambdas = torch.rand(len(lengths))
    got = K.select_transitions(entropies, offsets(lengths), offsets(lengths[::-1]), lambdas, alpha, sum(lengths))
    start, means = 0, []
    for n in lengths:
        means.append(float(entropies[start : start + n].mean()) if n else 0.0)
        start += n
    torch.testing.assert_close(got.mean_entropies, torch.tensor(means))
    exact = got.mean_entropies.tolist()
    count = max(1, int(alpha * len(lengths) + 1e-9))
    chosen = set(sorted(range(len(lengths)), key=lambda i: (-exact[i], i))[:count])
    assert [i in chosen for i in range(len(lengths))] == got.selected.tolist()
    total = sum(n for i, n in enumerate(lengths[::-1]) if i in chosen)
    weights = [
        float(lambdas[i]) / max(total, 1) if i in chosen else 0.0 for i, n in enumerate(lengths[::-1]) for _ in range(n)
    ]
    torch.testing.assert_close(got.wm_weights, torch.tensor(weights))


def test_all_and_fp64():
    """Entropies that differ only beyond fp32 are still told apart in fp64."""
    close = torch.tensor([1.0, 1.0 + 1e-12, 1.0], dtype=torch.float64)
    args = (close, offsets([1] * 3), offsets([1] * 3), torch.ones(3), 0.34, 3)
    assert K.select_transitions(*args).selected.tolist() == [False, True, False]
    assert K.select_transitions(*args).mean_entropies.dtype == torch.float64
    assert K.select_transitions(*args, mode="all").selected.all()


def test_opcheck():
    args = (torch.rand(5), offsets([2, 3]), offsets([1, 2]), torch.ones(2), None, 1, 3, False)
    torch.library.opcheck(torch.ops.paw_fast.select_transitions.default, args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"mode": "best"}, "'best'"),
        ({"action_offsets": torch.tensor([0, 1])}, r"action_offsets must be int64 \[3\]"),
        ({"entropies": torch.rand(3).half()}, "fp32"),
    ],
)
def test_refuses(change, message):
    good = {
        "entropies": torch.rand(3),
        "action_offsets": offsets([1, 2]),
        "observation_offsets": offsets([1, 1]),
        "lambdas": torch.ones(2),
        "alpha": 0.5,
        "num_observation_tokens": 2,
    }
    with pytest.raises(ValueError, match=message):
        K.select_transitions(**(good | change))
