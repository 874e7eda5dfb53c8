"""Tests of token_logprobs against float64, including known pitfalls of such kernels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast import kernels as K
from paw_fast.kernels.reference import token_logprobs_reference

from .helpers import DTYPES, assert_close, assert_gradient


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 9),
    vocab=st.one_of(st.integers(1, 40), st.integers(1000, 1100), st.integers(2040, 5000)),
    dtype=st.sampled_from(DTYPES),
    temperature=st.sampled_from([0.4, 1.0, 2.5]),
    softcap=st.sampled_from([None, 4.0, 30.0]),
    padding=st.integers(0, 20),
    gap=st.integers(0, 3),
    spread=st.sampled_from([0.1, 3.0, 12.0]),
    inplace=st.booleans(),
)
def test_matches_float64(isa, seed, rows, vocab, dtype, temperature, softcap, padding, gap, spread, inplace):
    g = torch.Generator().manual_seed(seed)
    width = vocab + padding
    buffer = (torch.randn(rows, width + gap, generator=g) * spread).to(dtype)
    logits = buffer[:, :width]
    targets = torch.randint(0, vocab, (rows,), generator=g)
    exact_in = logits.double().requires_grad_()
    exact = token_logprobs_reference(exact_in, targets, temperature, softcap=softcap, valid_vocab=vocab)
    mine_in = logits.clone().requires_grad_()
    mine = K.token_logprobs(
        mine_in + 0 if inplace else mine_in,
        targets,
        temperature,
        softcap=softcap,
        valid_vocab=vocab,
        inplace_backward=inplace,
    )
    largest = max(1.0, logits.float().abs().max().item() / temperature if rows else 1.0)
    for name, got, want in zip(mine._fields, mine, exact, strict=True):
        assert got.dtype == torch.float32
        assert_close(got, want, 4e-7 * largest + 2e-6, name)
    upstream = torch.randn(3, rows, generator=g)
    sum((upstream[i] * mine[i]).sum() for i in range(3)).backward()
    sum((upstream[i] * exact[i]).sum() for i in range(3)).backward()
    assert_gradient(mine_in.grad, exact_in.grad, 4 * largest / temperature, "logits")
    assert torch.equal(mine_in.grad[:, vocab:], torch.zeros_like(mine_in.grad[:, vocab:]))


def test_hand_computed(isa):
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0]]))
    got = K.token_logprobs(logits, torch.tensor([1]))
    entropy = -(1 / 8 * math.log(1 / 8) + 2 / 8 * math.log(2 / 8) + 5 / 8 * math.log(5 / 8))
    torch.testing.assert_close(got.logprobs, torch.tensor([math.log(0.25)]))
    torch.testing.assert_close(got.entropies, torch.tensor([entropy]))
    torch.testing.assert_close(got.lse, torch.tensor([math.log(8.0)]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_at_least_as_accurate_as_torch(isa, dtype):
    logits = (torch.randn(64, 32001) * 4).to(dtype)
    targets = torch.randint(0, 32001, (64,))
    truth = token_logprobs_reference(logits.double(), targets)
    peer = token_logprobs_reference(logits.float(), targets)
    mine = K.token_logprobs(logits, targets)
    for name, got, other, want in zip(mine._fields, mine, peer, truth, strict=True):
        bound = (other.double() - want).abs().max().item() + 2.0**-21
        assert_close(got, want, bound, name)


@pytest.mark.parametrize("vocab", [5, 1500, 3000])
def test_minus_infinity(isa, vocab):
    logits = torch.randn(4, vocab)
    logits[0, : vocab - 2] = -torch.inf  # the first blocks contain no finite value
    logits[1, 1::2] = -torch.inf
    logits[2] = -torch.inf
    targets = torch.tensor([vocab - 1, 0, 0, 0])
    logits.requires_grad_()
    mine = K.token_logprobs(logits, targets)
    want = token_logprobs_reference(logits.detach().double(), targets)
    keep = torch.tensor([0, 1, 3])
    for got, exact in zip(mine, want, strict=True):
        assert_close(got[keep], exact[keep], 2e-6, "finite rows")
    assert mine.logprobs[2].isnan()
    assert mine.entropies[2].isnan()
    (mine.logprobs[keep].sum() + mine.entropies[keep].sum()).backward()
    assert logits.grad[keep].isfinite().all()
    assert (logits.grad[1, 1::2] == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 7, 1023, 1024, 2047, 2048, 2050])
def test_nan_does_not_affect_other_rows(isa, bad, where):
    logits = torch.randn(3, 2051)
    clean = K.token_logprobs(logits, torch.zeros(3, dtype=torch.int64))
    logits[1, where] = bad
    dirty = K.token_logprobs(logits, torch.zeros(3, dtype=torch.int64))
    assert dirty.logprobs[1].isnan()
    assert dirty.entropies[1].isnan()
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])


def test_nan_next_to_minus_infinity_is_kept(isa):
    for where in range(20):
        logits = torch.full((1, 20), -torch.inf)
        logits[0, where] = torch.nan
        assert K.token_logprobs(logits, torch.tensor([0])).lse.isnan().all()


def test_extreme_logits(isa):
    logits = torch.tensor([[3e38, -3e38, 0.0], [1e4, 1e4, -1e4], [-3e38, -3e38, -3e38]])
    got = K.token_logprobs(logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(got.logprobs, torch.tensor([0.0, -math.log(2), -math.log(3)]))
    torch.testing.assert_close(got.entropies, torch.tensor([0.0, math.log(2), math.log(3)]))


def test_exponential_is_accurate_to_two_ulp(isa):
    """The gradient of lse is p, which is e^z if lse is 0."""
    z = torch.linspace(-90.0, 0.0, 300001)[None]
    zero = torch.zeros(1)
    p = torch.ops.paw_fast.token_logprobs_backward(
        z, torch.tensor([0]), zero, zero, zero, None, None, torch.ones(1), 1.0, 0.0, z.shape[1]
    )
    z, p = z[0, 1:].double(), p[0, 1:].double()
    inside = z > -87.3
    want = torch.exp(z[inside])
    ulp = 2.0 ** (torch.floor(torch.log2(want)) - 23)
    assert ((p[inside] - want).abs() / ulp).max().item() <= 2
    assert (p[z < -87.4] == 0).all()


def test_row_offsets_beyond_two_to_the_31(isa):
    stride, rows = 1 << 16, (1 << 15) + 2  # the last row starts after element 2^31; only accessed pages are allocated
    storage = torch.empty(stride * (rows - 1) + 40, dtype=torch.bfloat16)
    logits = storage.as_strided((rows, 40), (stride, 1))
    logits[0], logits[-1] = torch.randn(40), torch.randn(40)
    picked = logits.as_strided((2, 40), (stride * (rows - 1), 1))
    targets = torch.tensor([3, 5])
    got = K.token_logprobs(picked, targets)
    want = token_logprobs_reference(picked.double(), targets)
    assert_close(got.logprobs, want.logprobs, 2e-6, "logprobs")


def test_more_than_65535_rows(isa):
    logits = torch.randn(70000, 3)
    targets = torch.randint(0, 3, (70000,))
    got = K.token_logprobs(logits, targets)
    assert_close(got.logprobs, token_logprobs_reference(logits.double(), targets).logprobs, 2e-6, "logprobs")


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_other_rows(isa, dtype):
    logits = torch.randn(11, 4097).to(dtype)
    targets = torch.randint(0, 4097, (11,))
    whole = K.token_logprobs(logits, targets)
    again = K.token_logprobs(logits, targets)
    shifted = torch.empty(logits.numel() + 1, dtype=dtype)[1:].view(11, 4097).copy_(logits)  # another alignment
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single = [K.token_logprobs(shifted[i : i + 1], targets[i : i + 1]) for i in range(11)]
    finally:
        torch.set_num_threads(before)
    for field in range(3):
        assert torch.equal(whole[field], again[field])
        assert torch.equal(whole[field], torch.cat([s[field] for s in single]))


def test_outputs_do_not_depend_on_uninitialized_memory(isa, monkeypatch):
    logits = torch.randn(5, 33)
    targets = torch.randint(0, 33, (5,))
    want = K.token_logprobs(logits, targets)
    real = torch.empty

    def poisoned(*args, **kwargs):
        return real(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty", poisoned)
    got = K.token_logprobs(logits, targets)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_gradcheck_of_the_reference():
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 6])
    assert torch.autograd.gradcheck(lambda x: tuple(token_logprobs_reference(x, targets, 0.7, softcap=3.0)), logits)


@pytest.mark.parametrize("inplace", [False, True])
def test_opcheck(inplace):
    logits = torch.randn(4, 19)
    torch.library.opcheck(
        torch.ops.paw_fast.token_logprobs.default, (logits, torch.tensor([1, 2, 3, 4]), 0.9, 0.0, 17, inplace)
    )
    if not inplace:
        leaf = logits.clone().requires_grad_()
        torch.library.opcheck(
            torch.ops.paw_fast.token_logprobs.default, (leaf, torch.tensor([1, 2, 3, 4]), 0.9, 2.0, 19, False)
        )


@pytest.mark.parametrize("name", ["token_logprobs_backward", "token_logprobs_backward_"])
def test_opcheck_of_the_backward(name):
    logits, targets = torch.randn(4, 19), torch.tensor([1, 2, 3, 4])
    out = K.token_logprobs(logits, targets)
    op = getattr(torch.ops.paw_fast, name).default
    torch.library.opcheck(op, (logits, targets, *out, torch.randn(4), None, torch.randn(4), 1.0, 0.0, 19))


def test_in_place_backward_uses_the_logits_buffer():
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    targets = torch.tensor([1, 2, 3, 4])
    logits = hidden @ weight.T
    seen = []
    logits.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    (K.token_logprobs(logits, targets, inplace_backward=True).entropies.sum()).backward()
    assert seen == [logits.data_ptr()]
    mine = hidden.grad.clone()
    hidden.grad = None
    token_logprobs_reference(hidden @ weight.T, targets).entropies.sum().backward()
    torch.testing.assert_close(mine, hidden.grad)


def test_other_users_of_the_logits_get_an_error():
    logits = torch.randn(2, 5, requires_grad=True) * 1.0
    squares = (logits * logits).sum()
    (K.token_logprobs(logits, torch.tensor([0, 1]), inplace_backward=True).logprobs.sum()).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


INVALID = {
    "three dimensions": (lambda x, t: K.token_logprobs(x[None], t), ValueError, r"\[N, V\]"),
    "float64": (lambda x, t: K.token_logprobs(x.double(), t), ValueError, "float64"),
    "columns not dense": (lambda x, t: K.token_logprobs(x.T.contiguous().T, t), ValueError, "contiguous"),
    "overlapping rows": (lambda x, t: K.token_logprobs(x[:1].expand(4, 6), t), ValueError, "overlap"),
    "too few targets": (lambda x, t: K.token_logprobs(x, t[:3]), ValueError, r"targets must be \[4\].*\(3,\)"),
    "int32 targets": (lambda x, t: K.token_logprobs(x, t.int()), ValueError, "int64.*int32"),
    "negative target": (lambda x, t: K.token_logprobs(x, t - 9), IndexError, "target -9"),
    "target in the padding": (lambda x, t: K.token_logprobs(x, t + 5, valid_vocab=5), IndexError, r"\[0, 5\)"),
    "temperature 0": (lambda x, t: K.token_logprobs(x, t, 0.0), ValueError, "temperature"),
    "softcap below 0": (lambda x, t: K.token_logprobs(x, t, softcap=-1.0), ValueError, "softcap"),
    "valid_vocab too large": (lambda x, t: K.token_logprobs(x, t, valid_vocab=7), ValueError, r"\[1, 6\]"),
    "leaf in place": (
        lambda x, t: K.token_logprobs(x.requires_grad_(), t, inplace_backward=True),
        ValueError,
        "leaf",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_arguments_are_errors(case):
    call, error, message = INVALID[case]
    with pytest.raises(error, match=message):
        call(torch.randn(4, 6), torch.zeros(4, dtype=torch.int64))
