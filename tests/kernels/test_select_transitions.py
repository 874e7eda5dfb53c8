"""Tests the selection by hand, its ties and weights, and against a stable sort, on every instruction set."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast import kernels as K
from paw_fast.algorithms import world_model
from paw_fast.kernels import native, reference

from .helpers import random_transitions


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
    args = (torch.rand(5), offsets([2, 3]), offsets([1, 2]), torch.ones(2), None, None, 0.5, 3, False)
    torch.library.opcheck(torch.ops.paw_fast.select_transitions.default, args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"mode": "best"}, "'best'"),
        ({"action_offsets": torch.tensor([0, 1])}, r"action_offsets must be int64 \[3\]"),
        ({"entropies": torch.rand(3).half()}, "fp32"),
        ({"lambdas": torch.ones(2).double()}, "lambdas must be fp32"),
        ({"candidates": torch.ones(2)}, r"candidates must be bool \[2\]"),
        ({"action_offsets": torch.tensor([1, 2, 3])}, "rise from 0 to the number of tokens, 3; they go from 1 to 3"),
        ({"observation_offsets": torch.tensor([0, 1, 3])}, "they go from 0 to 3"),
        ({"action_offsets": torch.tensor([0, 4, 3])}, "fall between"),
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


@given(
    seed=st.integers(0, 2**31),
    num=st.one_of(st.integers(1, 30), st.integers(8190, 8194), st.just(20000)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    alpha=st.floats(0.001, 1.0),
    decimals=st.sampled_from([0, 1, 7]),
    mode=st.sampled_from(["entropy", "lowest", "random", "all"]),
    share=st.sampled_from([None, 0.0, 0.3, 0.9]),
)
def test_matches_a_stable_sort(isa, seed, num, dtype, alpha, decimals, mode, share):
    case = random_transitions(num, seed, dtype, decimals, share)
    got = K.select_transitions(**case, alpha=alpha, mode=mode, generator=torch.Generator().manual_seed(seed))
    exact = {**case, "entropies": case["entropies"].double()}
    del case["num_observation_tokens"], exact["num_observation_tokens"]
    scores = torch.rand(num, generator=torch.Generator().manual_seed(seed)) if mode == "random" else None
    if scores is not None and case["candidates"] is not None:
        scores[case["candidates"]] = scores[: int(case["candidates"].sum())].clone()
    # Ranked by the means of the kernel, which are right to their dtype's last bit.
    want = reference.select_transitions_reference(
        **exact,
        alpha=1.0 if mode == "all" else alpha,
        scores=got.mean_entropies if scores is None else scores,
        lowest=mode == "lowest",
    )
    assert torch.equal(got.mean_entropies.nan_to_num(-1.0), want.mean_entropies.to(dtype).nan_to_num(-1.0))
    assert torch.equal(got.selected, want.selected)
    assert torch.equal(got.wm_weights, want.wm_weights)
    assert got.num_wm_tokens == want.num_wm_tokens


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_at_the_edges_are_in_order(isa, dtype, lowest):
    tiny = torch.finfo(dtype).smallest_normal / 4
    values = [math.nan, math.inf, 1.0 + torch.finfo(dtype).eps, 1.0, tiny, 0.0, -0.0, -tiny, -1.0, -math.inf]
    scores = torch.tensor(values[::-1] if lowest else values, dtype=dtype)
    one = torch.arange(11)
    arguments = (torch.zeros(10, dtype=dtype), one, one, torch.ones(10))
    for count in range(1, 11):
        got = torch.ops.paw_fast.select_transitions(*arguments, scores, None, count / 10, 10, lowest)[1]
        assert got.tolist() == [i < count for i in range(10)], count


def test_count_is_that_of_python(isa):
    for num in (1, 3, 10, 30, 99, 1000):
        offsets_of = torch.arange(num + 1)
        for alpha in (0.07, 0.1, 0.29, 0.3, 0.57, 0.7, 0.9, 1 / 3, 2 / 3, 1.0):
            got = K.select_transitions(torch.rand(num), offsets_of, offsets_of, torch.ones(num), alpha, num)
            assert int(got.selected.sum()) == max(1, math.floor(alpha * num + 1e-9)), (num, alpha)


def test_same_bits_for_every_number_of_threads_and_instruction_set(isa):
    case = random_transitions(50_000, 5, torch.float32, 3, 0.8)
    native.use_cpu_isa("portable")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = K.select_transitions(**case, alpha=0.6)
        native.use_cpu_isa(isa)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for got, exact in zip(K.select_transitions(**case, alpha=0.6), want, strict=True):
                assert torch.equal(got.nan_to_num(-1.0), exact.nan_to_num(-1.0))
    finally:
        torch.set_num_threads(before)


def test_random_scores_of_the_candidates_do_not_depend_on_the_others():
    candidates = torch.rand(100, generator=torch.Generator().manual_seed(1)) < 0.4
    num = int(candidates.sum())

    def pick(count, **more):
        none = torch.zeros(count + 1, dtype=torch.int64)
        generator = torch.Generator().manual_seed(7)
        return K.select_transitions(
            torch.zeros(0), none, none, torch.ones(count), 0.5, 0, mode="random", generator=generator, **more
        ).selected

    assert torch.equal(pick(100, candidates=candidates)[candidates], pick(num))


@pytest.mark.parametrize("mode", K.SELECTION_MODES)
def test_the_trainer_runs_the_kernel(mode, monkeypatch):
    """Not the torch expression: what that is made of is forbidden here, and nothing in the package imports it."""
    called = []
    run = native.call
    monkeypatch.setattr(native, "call", lambda op, *args: (called.append(op), run(op, *args)))
    for name in ("sort", "argsort", "topk", "segment_reduce", "repeat_interleave"):
        monkeypatch.setattr(torch, name, lambda *_, name=name, **__: pytest.fail(f"torch.{name} was called"))
    picked = world_model.select_transitions(np.array([0.5, 0.1, 0.9, 0.9]), 0.5, mode)
    assert picked.sum() == (4 if mode == "all" else 2)
    assert called == ["select_transitions"]


def test_only_tests_and_benches_import_the_reference():
    package = Path(native.__file__).parents[1]
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            assert not any(f"{module}.{name}".endswith("kernels.reference") for name in names), path
            assert not module.endswith("kernels.reference"), path


def test_the_kernel_is_needed(monkeypatch):
    monkeypatch.setattr(native, "_native", None)
    with pytest.raises(RuntimeError, match=r"select_transitions cannot run: .*extension is missing"):
        world_model.select_transitions(np.ones(3), 0.5)


def test_world_model_candidates_are_as_if_alone():
    rng = np.random.default_rng(3)
    entropies, candidates = rng.random(60).round(1), rng.random(60) < 0.5
    entropies[~candidates] = np.nan  # not looked at
    for mode in K.SELECTION_MODES:
        want = np.zeros(60, dtype=bool)
        want[candidates] = world_model.select_transitions(entropies[candidates], 0.4, mode, seed=(1, 2))
        got = world_model.select_transitions(entropies, 0.4, mode, seed=(1, 2), candidates=candidates)
        assert (got == want).all()
    assert not world_model.select_transitions(entropies, 0.4, candidates=np.zeros(60, dtype=bool)).any()
