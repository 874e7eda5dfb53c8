"""Tests of both attention plans against an explicit softmax, and of the features that are not supported."""

from types import SimpleNamespace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from paw_fast.errors import UserError
from paw_fast.models import packed_attention
from paw_fast.models.packed_attention import AttentionParams, PackedPlan, SlotCache, SlotPlan

HEADS, KV_HEADS, SIZE, VALUE_SIZE = 4, 2, 8, 12


def by_hand(q, k, v, params):
    """One sequence, query by query: q [Hq, n, D], k [Hk, n, D], v [Hk, n, Dv] -> [Hq, n, Dv]."""
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype)
    for h in range(q.shape[0]):
        group = h // (q.shape[0] // k.shape[0])
        for i in range(q.shape[1]):
            first = 0 if params.window is None else max(0, i - params.window + 1)
            scores = k[group, first : i + 1] @ q[h, i] * params.scale
            if params.softcap is not None:
                scores = params.softcap * torch.tanh(scores / params.softcap)
            weights = scores.exp()
            total = weights.sum() + (0 if params.sinks is None else params.sinks[h].exp())
            out[h, i] = (weights / total) @ v[group, first : i + 1]
    return out


def draw(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    make = lambda heads, size: torch.randn(1, heads, sum(lengths), size, generator=generator, dtype=torch.float64)  # noqa: E731
    return make(HEADS, SIZE), make(KV_HEADS, SIZE), make(KV_HEADS, VALUE_SIZE), generator


all_params = st.tuples(
    st.none() | st.integers(1, 12), st.none() | st.floats(0.5, 20.0), st.booleans(), st.floats(0.05, 2.0)
)


def params_of(settings, generator):
    window, softcap, sinks, scale = settings
    values = torch.randn(HEADS, generator=generator, dtype=torch.float64) * 2 if sinks else None
    return AttentionParams(scale, window, softcap, values)


@hypothesis.given(st.lists(st.integers(1, 14), min_size=1, max_size=4), all_params, st.integers(0, 1000))
def test_packed_attention_equals_the_softmax_of_each_sequence(lengths, settings, seed):
    q, k, v, generator = draw(lengths, seed)
    params = params_of(settings, generator)
    got = PackedPlan(tuple(lengths)).attend(0, q, k, v, params)[0].split(lengths, 1)
    parts = zip(*(x[0].split(lengths, 1) for x in (q, k, v)), strict=True)
    for part, (a, b, c) in zip(got, parts, strict=True):
        torch.testing.assert_close(part, by_hand(a, b, c, params), atol=1e-10, rtol=0)


@hypothesis.given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=3),
    all_params,
    st.integers(0, 999),
)
def test_the_cache_equals_attention_over_whole_sequences(pieces, settings, seed):
    """Each sequence arrives in pieces, some of them single tokens. The pieces of a turn are computed in one call."""
    lengths = [sum(p) for p in pieces]
    q, k, v, generator = draw(lengths, seed)
    params = params_of(settings, generator)
    whole = PackedPlan(tuple(lengths)).attend(0, q, k, v, params)
    begins = [sum(lengths[:i]) for i in range(len(lengths))]
    cache, got, done = SlotCache(len(pieces), 64), torch.zeros_like(whole), [0] * len(pieces)
    for turn in range(max(map(len, pieces))):
        due = [(i, p[turn]) for i, p in enumerate(pieces) if turn < len(p)]
        due.sort(key=lambda item: item[1] > 1)
        plan = SlotPlan.make(cache, [i for i, _ in due], [done[i] for i, _ in due], [n for _, n in due], "cpu")
        at = torch.cat([torch.arange(begins[i] + done[i], begins[i] + done[i] + n) for i, n in due])
        got[:, :, at] = plan.attend(0, q[:, :, at], k[:, :, at], v[:, :, at], params)
        for i, n in due:
            done[i] += n
    torch.testing.assert_close(got, whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_with_a_window_and_sinks(softcap):
    lengths = (9, 5)
    q, k, v, generator = draw(lengths, 1)
    sinks = torch.randn(HEADS, generator=generator, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v, sinks)]
    run = lambda q, k, v, s: PackedPlan(lengths).attend(0, q, k, v, AttentionParams(0.4, 4, softcap, s))  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)


def test_the_block_size_does_not_change_the_result(monkeypatch):
    q, k, v, _ = draw((30,), 2)
    params = AttentionParams(0.3, 11, 2.0)
    whole = PackedPlan((30,)).attend(0, q, k, v, params)
    monkeypatch.setattr(packed_attention, "QUERY_BLOCK", 7)
    torch.testing.assert_close(PackedPlan((30,)).attend(0, q, k, v, params), whole, atol=1e-12, rtol=0)


def test_the_cache_keeps_its_contents_when_it_grows():
    q, k, v, _ = draw((300,), 3)
    cache = SlotCache(1, 400)
    for start, n in ((0, 250), (250, 50)):
        plan = SlotPlan.make(cache, [0], [start], [n], "cpu")
        part = slice(start, start + n)
        got = plan.attend(0, q[:, :, part], k[:, :, part], v[:, :, part], AttentionParams(0.3))
    want = PackedPlan((300,)).attend(0, q, k, v, AttentionParams(0.3))[:, :, 250:]
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="got 401 tokens, expected at most 400"):
        cache.reserve(401)


def call(module=None, mask=None, **arguments):
    q, k, v, _ = draw((3,), 0)
    module = module or SimpleNamespace(layer_idx=0, config=SimpleNamespace(model_type="novel"))
    given: dict[str, Any] = {"paw_plan": PackedPlan((3,))} | arguments
    return packed_attention._packed_attention(module, q, k, v, mask, **given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_bias": torch.zeros(1)}, "models of type novel .*`position_bias`"),
        ({"indices": torch.zeros(1)}, "`indices`"),
        ({"sinks": torch.zeros(1)}, "`sinks`"),
        ({"a_new_feature": 3}, "`a_new_feature`"),
        ({"dropout": 0.1}, "dropout 0.1"),
        ({"is_causal": False}, "not causal"),
        ({"scaling": torch.ones(4)}, "`scaling` that is not a number"),
        ({"mask": torch.zeros(1, 1, 3, 3)}, "custom attention mask"),
        ({"paw_plan": None}, "does not receive `paw_plan`"),
        ({"mask": torch.empty(8, 1, 0, 0), "sliding_window": 4}, "two windows"),
        ({"module": SimpleNamespace(config=SimpleNamespace(model_type="novel"))}, "`layer_idx`"),
        ({"module": SimpleNamespace(layer_idx=0, is_causal=False)}, "not causal"),
    ],
)
def test_unsupported_features_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        call(**arguments)


def test_arguments_without_effect_are_accepted():
    plain = call()[0]
    assert torch.equal(call(position_bias=None, use_cache=False, sliding_window=None, softcap=None)[0], plain)
    assert not torch.equal(call(sliding_window=2)[0], plain)
    assert torch.equal(call(mask=torch.empty(2, 1, 0, 0))[0], call(sliding_window=2)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "params",
    [AttentionParams(0.3), AttentionParams(0.3, 5), AttentionParams(0.3, 5, 2.0)],
    ids=["plain", "window", "cap"],
)
@pytest.mark.parametrize("sinks", [False, True])
def test_cuda_equals_cpu(params, sinks):
    lengths = (40, 7, 17)
    q, k, v, generator = draw(lengths, 4)
    values = torch.randn(HEADS, generator=generator, dtype=torch.float64) if sinks else None
    params = AttentionParams(params.scale, params.window, params.softcap, values)
    want = PackedPlan(lengths).attend(0, q, k, v, params)
    on_gpu = (q.cuda().float(), k.cuda().float(), v.cuda().float())
    moved = AttentionParams(
        params.scale, params.window, params.softcap, None if values is None else values.cuda().float()
    )
    got = PackedPlan(lengths).attend(0, *on_gpu, moved)
    torch.testing.assert_close(got.cpu().double(), want, atol=1e-3, rtol=0)
