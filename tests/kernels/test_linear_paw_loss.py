"""Tests of linear_paw_loss: the same results as paw_loss on all logits, in bounded memory."""

from __future__ import annotations

import types

import pytest
import torch

from paw_fast import kernels as K
from paw_fast.kernels.linear_paw_loss import chunk_rows, default_chunk_bytes
from paw_fast.kernels.paw_loss import op_arguments
from paw_fast.kernels.reference import paw_loss_reference

from .helpers import DTYPES, random_rows

SETTINGS = K.LossSettings(
    kl_coef=0.1, kl_clamp=0.2, entropy_coef=0.02, temperature=0.8, wm_temperature=0.7, softcap=8.0, valid_vocab=45
)


def case(dtype=torch.float32, num=23, hidden=16, vocab=50):
    g = torch.Generator().manual_seed(7)
    x = torch.randn(num, hidden, generator=g).to(dtype).requires_grad_()
    w = (torch.randn(vocab, hidden, generator=g) * 0.5).to(dtype).requires_grad_()
    b = torch.randn(vocab, generator=g).to(dtype).requires_grad_()
    rows = random_rows((x @ w.T + b).detach().float(), 45, g, temperature=0.8, softcap=8.0)
    return x, w, b, rows


def truth(x, w, b, rows, factor=1.0):
    x, w, b = (t.detach().double().requires_grad_() for t in (x, w, b))
    out = paw_loss_reference(x @ w.T + b, rows, SETTINGS)
    (factor * out.loss).backward()
    return out, x.grad, w.grad, b.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 20])
def test_matches_float64(dtype, chunk_bytes):
    x, w, b, rows = case(dtype)
    want, *grads = truth(x, w, b, rows, 2.0)
    got = K.linear_paw_loss(x, w, rows, SETTINGS, bias=b, chunk_bytes=chunk_bytes)
    (2.0 * got.loss).backward()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(got.loss.double(), want.loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got.logprobs.double(), want.logprobs, rtol=tolerance, atol=tolerance)
    for mine, exact in zip((x, w, b), grads, strict=True):
        assert mine.grad.dtype == dtype
        error = (mine.grad.double() - exact).norm() / exact.norm()
        assert error < tolerance / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_bytes", [1, 2000, 1 << 20])
@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
def test_rows_without_gradient(dtype, chunk_bytes, share):
    """Saturated rows, ignored rows and rows of weight 0, whose matrix products are skipped on the CPU."""
    x, w, b, rows = case(dtype, num=40)
    g = torch.Generator().manual_seed(8)
    with torch.no_grad():
        likely = (x @ w.T + b)[:, :45].argmax(-1)
    dead = torch.rand(40, generator=g) < share
    rows.targets[dead], rows.kinds[dead] = likely[dead], K.WORLD_MODEL
    rows.weights[dead & (torch.arange(40) % 5 == 0)] = 0.0
    rows.kinds[dead & (torch.arange(40) % 7 == 0)] = K.IGNORED
    want, *grads = truth(x, w, b, rows)
    got = K.linear_paw_loss(x, w, rows, SETTINGS, bias=b, chunk_bytes=chunk_bytes)
    got.loss.backward()
    assert torch.equal(got.flags, want.flags)
    none = (rows.kinds == K.IGNORED) | (rows.weights == 0) | (got.flags & K.SATURATED).bool()
    assert none.sum() >= 0.7 * dead.sum()
    assert not x.grad[none].any()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    for mine, exact in zip((x, w, b), grads, strict=True):
        assert (mine.grad.double() - exact).norm() <= tolerance / 2 * exact.norm()


def test_mae_and_cross_entropy_skip_no_row():
    for loss in ("mae", "ce"):
        x, w, _, rows = case()
        rows.kinds[:] = K.WORLD_MODEL
        with torch.no_grad():
            rows.targets[:] = (x @ w.T).argmax(-1)
        K.linear_paw_loss(x, w, rows, K.LossSettings(wm_loss=loss, tau=0.01)).loss.backward()
        assert x.grad.any(1).all()


def test_nan_rows_stay_nan():
    x, w, _, rows = case()
    rows.kinds[:] = K.WORLD_MODEL
    with torch.no_grad():
        rows.targets[:] = (x @ w.T).argmax(-1)
        x[3] = torch.nan
    K.linear_paw_loss(x, w, rows, K.LossSettings()).loss.backward()
    assert x.grad.isnan().any(1).nonzero().flatten().tolist() == [3]
    assert w.grad.isnan().all()


def test_equals_paw_loss_on_all_logits():
    x, w, _, rows = case()
    K.paw_loss(x @ w.T, rows, SETTINGS).loss.backward()
    want = x.grad.clone(), w.grad.clone()
    x.grad = w.grad = None
    out = K.linear_paw_loss(x, w, rows, SETTINGS, chunk_bytes=50 * 4 * 7)
    out.loss.backward()
    torch.testing.assert_close(x.grad, want[0])
    torch.testing.assert_close(w.grad, want[1])
    assert not out.losses.requires_grad


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_input_gets_no_gradient(frozen):
    x, w, _, rows = case()
    (x if frozen == "hidden" else w).requires_grad_(False)
    K.linear_paw_loss(x, w, rows, SETTINGS).loss.backward()
    assert (x.grad is None) == (frozen == "hidden")
    assert (w.grad is None) == (frozen == "weight")


def test_tied_head():
    _, w, _, rows = case()
    ids = torch.arange(23)
    K.paw_loss(w[ids] @ w.T, rows, SETTINGS).loss.backward()
    want, w.grad = w.grad.clone(), None
    K.linear_paw_loss(w[ids], w, rows, SETTINGS, chunk_bytes=2000).loss.backward()
    torch.testing.assert_close(w.grad, want)


def test_weight_gradient_is_summed_in_fp32():
    """4096 equal contributions: a sum in bf16 would stop growing after 256 of them."""
    x = torch.ones(4096, 1, dtype=torch.bfloat16)
    w = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    rows = K.LossRows(
        torch.zeros(4096, dtype=torch.int64),
        torch.full((4096,), K.WORLD_MODEL, dtype=torch.uint8),
        torch.ones(4096),
        torch.zeros(4096),
        torch.zeros(4096),
    )
    K.linear_paw_loss(x, w, rows, K.LossSettings(wm_loss="ce"), chunk_bytes=64).loss.backward()
    assert w.grad.flatten().tolist() == [-2048.0, 2048.0]


def test_at_most_one_chunk_of_logits_exists():
    x, w = torch.randn(512, 8, requires_grad=True), torch.randn(20000, 8, requires_grad=True)
    rows = random_rows((x @ w.T).detach(), 20000, torch.Generator().manual_seed(1))
    rows.weights[::3] = 0.0  # the remaining rows are compacted
    with torch.profiler.profile(profile_memory=True) as profile:
        K.linear_paw_loss(x, w, rows, K.LossSettings(), chunk_bytes=1 << 20)
    largest = max(e.cpu_memory_usage for e in profile.events())
    assert largest < 2 << 20  # all logits would take 41 MB


def test_second_backward_is_an_error():
    x, w, _, rows = case()
    loss = K.linear_paw_loss(x, w, rows, SETTINGS).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed over already"):
        loss.backward()


def test_no_rows():
    x, w, _, rows = case(num=0)
    loss = K.linear_paw_loss(x, w, rows, SETTINGS).loss
    loss.backward()
    assert loss.item() == 0.0
    assert not w.grad.any()


def test_compiles_without_graph_breaks():
    x, w, _, rows = case()
    K.linear_paw_loss(x, w, rows, SETTINGS).loss.backward()
    want = x.grad.clone(), w.grad.clone()
    x.grad = w.grad = None

    def step(x, w):
        return K.linear_paw_loss(x, w, rows, SETTINGS).loss

    torch.compile(step, fullgraph=True, backend="aot_eager")(x, w).backward()
    torch.testing.assert_close(x.grad, want[0])
    torch.testing.assert_close(w.grad, want[1])


@pytest.mark.parametrize("frozen", [False, True])
def test_opcheck(frozen):
    x, w, b, rows = case()
    if frozen:
        w.requires_grad_(False)
    arguments = op_arguments(w.T, rows, SETTINGS)
    # Only `loss` has a gradient, which the forward pass computes. The numeric check of gradients is elsewhere.
    torch.library.opcheck(
        torch.ops.paw_fast.linear_paw_loss.default, (x, w, b, *arguments, 7, True, not frozen, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip


def test_chunks_are_even():
    weight = torch.empty(1024, 1)
    assert chunk_rows(100, weight, 1) == 1
    assert chunk_rows(100, weight, 4096 * 30) == 30
    assert chunk_rows(100, weight, 4096 * 128) == 100
    assert chunk_rows(1000, weight, 4096 * 600) == 512
    assert chunk_rows(1100, weight, 4096 * 600) == 384


@pytest.mark.parametrize(
    ("vocab", "dtype", "length"),
    [(50, torch.float32, 64), (50, torch.bfloat16, 64), (50257, torch.bfloat16, 50304), (64, torch.float32, 64)],
)
def test_rows_of_the_buffer_begin_at_128_bytes(monkeypatch, vocab, dtype, length):
    """The products of an odd row length lose a third of their speed; the padding counts towards the chunk's size."""
    seen = []

    def spy(logits, *arguments):
        seen.append(logits.stride())
        return paw_loss_(logits, *arguments)

    paw_loss_ = torch.ops.paw_fast.paw_loss_
    monkeypatch.setattr(torch.ops.paw_fast, "paw_loss_", spy)
    x, w = torch.randn(3, 4).to(dtype), torch.randn(vocab, 4).to(dtype)
    rows = random_rows(x.float() @ w.float().T, vocab, torch.Generator().manual_seed(1))
    K.linear_paw_loss(x, w, rows, K.LossSettings(), chunk_bytes=2 * length * dtype.itemsize)
    assert seen == [(length, 1), (length, 1)]
    assert chunk_rows(3, w, 2 * length * dtype.itemsize - 1) == 1


def test_chunks_follow_the_memory_of_the_device(monkeypatch):
    """8192 rows of 128k bf16 logits, 2 GiB, are one chunk on an 80 GB card and more on a smaller one."""
    memory = {"cuda:0": 79.1, "cuda:1": 24.0}
    properties = lambda device: types.SimpleNamespace(total_memory=int(memory[str(device)] * 2**30))  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    weight = torch.empty(131072, 1, dtype=torch.bfloat16)
    assert default_chunk_bytes(torch.device("cpu")) == 256 << 20
    assert chunk_rows(8192, weight, default_chunk_bytes(torch.device("cuda:0"))) == 8192
    assert chunk_rows(8192, weight, default_chunk_bytes(torch.device("cuda:1"))) == 2048


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w: {"hidden": x[:, :3]}, r"\[N, H\].*\(23, 3\)"),
        (lambda x, w: {"weight": w.double()}, "share a dtype"),
        (lambda x, w: {"bias": torch.zeros(3)}, r"bias must be \[50\]"),
        (lambda x, w: {"chunk_bytes": 0}, "chunk_bytes"),
        (lambda x, w: {"hidden": x[:5]}, r"targets must be \[5\]"),
    ],
)
def test_refuses(change, message):
    x, w, _, rows = case()
    with pytest.raises(ValueError, match=message):
        K.linear_paw_loss(**({"hidden": x, "weight": w, "rows": rows, "settings": SETTINGS} | change(x, w)))
