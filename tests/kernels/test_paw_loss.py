"""Tests of paw_loss against float64 and values computed by hand, of its in-place gradient and its errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast import kernels as K
from paw_fast.kernels.reference import paw_loss_reference

from .helpers import DTYPES, assert_close, assert_gradient, random_rows


@given(
    seed=st.integers(0, 2**31),
    num=st.integers(0, 12),
    vocab=st.one_of(st.integers(1, 40), st.integers(1000, 1100), st.integers(2040, 4200)),
    dtype=st.sampled_from(DTYPES),
    padding=st.integers(0, 20),
    gap=st.integers(0, 3),
    spread=st.sampled_from([0.1, 3.0, 8.0]),
    settings=st.builds(
        K.LossSettings,
        clip_low=st.sampled_from([0.1, 0.2]),
        clip_high=st.sampled_from([0.2, 0.28]),
        dual_clip=st.sampled_from([None, 1.3, 3.0]),
        kl_coef=st.sampled_from([0.0, 0.01, 1.0]),
        kl_clamp=st.sampled_from([None, 0.05, 10.0]),
        entropy_coef=st.sampled_from([0.0, 0.01, -0.3]),
        wm_loss=st.sampled_from(["cmae", "mae", "ce"]),
        tau=st.sampled_from([0.05, 0.2, 1.0]),
        temperature=st.sampled_from([0.4, 1.0]),
        wm_temperature=st.sampled_from([1.0, 0.7, 2.0]),
        softcap=st.sampled_from([None, 5.0]),
        grad_scale=st.sampled_from([1.0, 256.0]),
    ),
    with_importance=st.booleans(),
)
def test_matches_float64(isa, seed, num, vocab, dtype, padding, gap, spread, settings, with_importance):
    g = torch.Generator().manual_seed(seed)
    width = vocab + padding
    settings = dataclasses.replace(settings, valid_vocab=vocab)
    buffer = (torch.randn(num, width + gap, generator=g) * spread).to(dtype)
    logits = buffer[:, :width]
    rows = random_rows(logits, vocab, g, temperature=settings.temperature, softcap=settings.softcap)
    rows = dataclasses.replace(
        rows,
        importance=rows.importance if with_importance else None,
        ref_logprobs=rows.ref_logprobs if settings.kl_coef else None,
    )
    ignored = rows.kinds == K.IGNORED
    exact_in = logits.double().requires_grad_()
    exact = paw_loss_reference(exact_in, rows, settings)
    exact.loss.backward()
    buffer[:, width:] = 77.0
    logits[ignored] = torch.nan  # ignored rows and padding may contain anything
    logits[:, vocab:] = torch.nan
    got = K.paw_loss(logits, rows, settings)

    coldest = min(settings.temperature, settings.wm_temperature)
    largest = max(1.0, exact_in.abs().max().item() / coldest if num else 1.0)
    for name in ("logprobs", "entropies"):
        assert_close(getattr(got, name), getattr(exact, name), 4e-7 * largest + 2e-6, name)
    assert_close(got.losses, exact.losses, 2e-5 * largest, "losses")
    assert_close(got.loss, exact.loss, 1e-4 * largest, "loss")
    assert_close(got.kl, exact.kl, 2e-5 * largest, "kl")
    assert torch.equal(got.flags, exact.flags)
    assert_gradient(logits, exact_in.grad * settings.grad_scale, 20 * largest * settings.grad_scale / coldest, "logits")
    assert not logits[ignored].any()
    assert not logits[:, vocab:].any()
    assert (buffer[:, width:] == 77.0).all()


def rows_of(kind, target, **other):
    values = {"weights": 1.0, "old_logprobs": 0.0, "advantages": 0.0} | other
    return K.LossRows(
        torch.tensor([target]),
        torch.tensor([kind], dtype=torch.uint8),
        **{name: torch.tensor([float(value)]) for name, value in values.items()},
    )


P = torch.tensor([[0.1, 0.3, 0.6]])


def run(kind, target, settings=None, **other):
    logits = P.log()
    out = K.paw_loss(logits, rows_of(kind, target, **other), settings or K.LossSettings())
    return out, logits[0]


def test_policy_row_by_hand(isa):
    # rho = 0.3 / 0.3 = 1, A = 2: loss -2, g = -2
    out, grad = run(K.POLICY, 1, advantages=2.0, old_logprobs=math.log(0.3))
    torch.testing.assert_close(out.loss, torch.tensor(-2.0))
    torch.testing.assert_close(grad, torch.tensor([0.2, -1.4, 1.2]))
    assert out.flags.item() == 0


def test_clipped_policy_row_by_hand(isa):
    # rho = 0.3 / 0.2 = 1.5 > 1.2, A = 2: loss -2.4, no gradient; A = -2 stays unclipped: loss 3, g = 3
    out, grad = run(K.POLICY, 1, advantages=2.0, old_logprobs=math.log(0.2))
    torch.testing.assert_close(out.loss, torch.tensor(-2.4))
    assert out.flags.item() == K.CLIPPED
    assert torch.equal(grad, torch.zeros(3))
    out, grad = run(K.POLICY, 1, advantages=-2.0, old_logprobs=math.log(0.2))
    torch.testing.assert_close(out.loss, torch.tensor(3.0))
    torch.testing.assert_close(grad, 3 * (torch.tensor([0.0, 1.0, 0.0]) - P[0]))


def test_dual_clip_by_hand(isa):
    # rho = 0.3 / 0.05 = 6 > c = 3, A = -2: loss 6 instead of 12, no gradient
    out, grad = run(K.POLICY, 1, K.LossSettings(dual_clip=3.0), advantages=-2.0, old_logprobs=math.log(0.05))
    torch.testing.assert_close(out.loss, torch.tensor(6.0))
    assert out.flags.item() == K.DUAL_CLIPPED
    assert torch.equal(grad, torch.zeros(3))


def test_importance_multiplies_only_the_surrogate(isa):
    # surrogate -2 * 0.5; k3 with ref / p = 2: 2 - ln 2 - 1, times 0.1
    settings = K.LossSettings(kl_coef=0.1)
    out, grad = run(
        K.POLICY, 1, settings, advantages=2.0, old_logprobs=math.log(0.3), ref_logprobs=math.log(0.6), importance=0.5
    )
    kl = 2 - math.log(2) - 1
    torch.testing.assert_close(out.kl, torch.tensor([kl]))
    torch.testing.assert_close(out.loss, torch.tensor(-1.0 + 0.1 * kl))
    g = -1.0 + 0.1 * (1 - 2)
    torch.testing.assert_close(grad, g * (torch.tensor([0.0, 1.0, 0.0]) - P[0]))


@pytest.mark.parametrize(
    ("gap", "clamp", "kl", "g"),
    [
        (8.0, 10.0, 10.0, 0.0),  # verl: 2971.96 - 9 is clamped to 10, without gradient
        (8.0, None, math.exp(8) - 9, 0.01 * (1 - math.exp(8))),  # -29.8
        (2.6, 10.0, math.exp(2.6) - 3.6, 0.01 * (1 - math.exp(2.6))),  # 9.86, just below
        (-8.0, 10.0, math.exp(-8) + 7, 0.01 * (1 - math.exp(-8))),
        (-12.0, 10.0, 10.0, 0.0),  # 11.00
    ],
)
def test_kl_is_clamped_as_in_verl(isa, gap, clamp, kl, g):
    """verl's low_var_kl: clamp(exp(d) - d - 1, -10, 10) with d = ref - logp."""
    settings = K.LossSettings(kl_coef=0.01, kl_clamp=clamp)
    out, grad = run(K.POLICY, 1, settings, old_logprobs=math.log(0.3), ref_logprobs=math.log(0.3) + gap)
    torch.testing.assert_close(out.kl, torch.tensor([kl]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.loss, torch.tensor(0.01 * kl), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, g * (torch.tensor([0.0, 1.0, 0.0]) - P[0]), rtol=1e-5, atol=1e-6)
    if g == 0.0:
        assert torch.equal(grad, torch.zeros(3))


@given(seed=st.integers(0, 2**31), dtype=st.sampled_from(DTYPES), clamp=st.sampled_from([None, 0.5, 10.0]))
def test_large_gaps_to_the_reference_match_float64(isa, seed, dtype, clamp):
    """Gaps of 8 nats and more in both directions, where the clamp matters, against the code of verl."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, 33, generator=g).to(dtype)
    targets = torch.randint(0, 33, (8,), generator=g)
    exact_in = logits.double().requires_grad_()
    logp = torch.log_softmax(exact_in, -1).gather(1, targets[:, None])[:, 0]
    gaps = torch.tensor([8.0, 3.0, 2.0, 0.3, -0.3, -3.0, -8.0, -15.0])
    rows = K.LossRows(
        targets, torch.ones(8, dtype=torch.uint8), torch.ones(8), logp.detach().float(), torch.zeros(8),
        ref_logprobs=logp.detach().float() + gaps,
    )  # fmt: skip
    kl = torch.clamp(rows.ref_logprobs.double() - logp, -20, 20)
    k3 = torch.exp(kl) - kl - 1
    k3 = k3 if clamp is None else torch.clamp(k3, -clamp, clamp)
    (0.01 * k3).sum().backward()
    got = K.paw_loss(logits, rows, K.LossSettings(kl_coef=0.01, kl_clamp=clamp))
    torch.testing.assert_close(got.kl.double(), k3.detach(), rtol=2e-5, atol=2e-5)
    assert_gradient(logits, exact_in.grad, 30.0, "logits")
    for row in range(8):
        assert bool(logits[row].any()) == bool(exact_in.grad[row].any())


def test_world_model_rows_have_temperature_1(isa):
    """At temperature 0.5, p is 0.3^2 / 0.46 for policy rows and 0.3 for world-model rows."""
    for wm, p in ((1.0, 0.3), (0.5, 0.09 / 0.46)):
        out, grad = run(K.WORLD_MODEL, 1, K.LossSettings(temperature=0.5, wm_temperature=wm, wm_loss="mae"))
        torch.testing.assert_close(out.loss, torch.tensor(1 - p))
        torch.testing.assert_close(grad[1], torch.tensor(-p * (1 - p) / wm))
    out, _ = run(K.POLICY, 1, K.LossSettings(temperature=0.5), advantages=1.0, old_logprobs=math.log(0.09 / 0.46))
    torch.testing.assert_close(out.logprobs, torch.tensor([math.log(0.09 / 0.46)]))
    torch.testing.assert_close(out.loss, torch.tensor(-1.0))


def test_entropy_term_by_hand(isa):
    out, grad = run(K.POLICY, 1, K.LossSettings(entropy_coef=0.5))
    entropy = -(P * P.log()).sum()
    torch.testing.assert_close(out.loss, -0.5 * entropy)
    torch.testing.assert_close(grad, 0.5 * (P * (P.log() + entropy))[0])


@pytest.mark.parametrize(
    ("wm_loss", "target", "loss", "g", "flags"),
    [
        ("cmae", 0, 0.9, -0.1, 0),
        ("cmae", 1, 0.8, 0.0, K.SATURATED),
        ("mae", 1, 0.7, -0.3, K.SATURATED),
        ("ce", 1, -math.log(0.3), -1.0, K.SATURATED),
        ("ce", 0, -math.log(0.1), -1.0, 0),
    ],
)
def test_world_model_rows_by_hand(isa, wm_loss, target, loss, g, flags):
    out, grad = run(K.WORLD_MODEL, target, K.LossSettings(wm_loss=wm_loss, tau=0.2))
    torch.testing.assert_close(out.loss, torch.tensor(loss))
    assert out.flags.item() == flags
    want = g * (torch.eye(3)[target] - P[0])
    torch.testing.assert_close(grad, want)
    if g == 0.0:
        assert torch.equal(grad, torch.zeros(3))


def test_log_ratio_is_clamped_before_exp(isa):
    for old, advantage in ((-300.0, -1.0), (300.0, 1.0), (-torch.inf, -1.0)):
        out, grad = run(K.POLICY, 1, advantages=advantage, old_logprobs=old)
        assert out.loss.isfinite()
        assert torch.equal(grad, torch.zeros(3))


def test_target_gradient_for_probabilities_close_to_1(isa):
    """1 - p_y for p_y = 1 - 1e-9 is 1e-9, not 0 and not 6e-8."""
    logits = torch.tensor([[math.log(1e9), 0.0]])
    K.paw_loss(logits, rows_of(K.WORLD_MODEL, 0), K.LossSettings(wm_loss="ce"))
    torch.testing.assert_close(logits, torch.tensor([[-1e-9, 1e-9]]), rtol=1e-5, atol=0.0)


def test_grad_scale_saves_fp16_gradients_from_underflow(isa):
    logits = torch.zeros(1, 4096, dtype=torch.float16)
    rows = rows_of(K.WORLD_MODEL, 0, weights=1e-5)
    small = logits.clone()
    K.paw_loss(small, rows, K.LossSettings(wm_loss="ce"))
    assert not small[0, 1:].any()  # 1e-5 / 4096 is below half of fp16's smallest number
    loss = K.paw_loss(logits, rows, K.LossSettings(wm_loss="ce", grad_scale=65536.0)).loss
    torch.testing.assert_close(logits[0, 1:].double(), torch.full((4095,), 65536e-5 / 4096).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(loss, torch.tensor(1e-5 * math.log(4096)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "all -inf"])
def test_non_finite_rows_do_not_affect_others(isa, bad):
    logits = torch.randn(3, 1500)
    g = torch.Generator().manual_seed(3)
    rows = dataclasses.replace(random_rows(logits, 1500, g), kinds=torch.tensor([1, 1, 2], dtype=torch.uint8))
    clean = logits.clone()
    clean_out = K.paw_loss(clean, rows, K.LossSettings())
    if bad == "all -inf":
        logits[1] = -torch.inf
    else:
        logits[1, 700] = bad
    out = K.paw_loss(logits, rows, K.LossSettings())
    assert out.losses[1].isnan()
    assert logits[1].isnan().all()
    for field in ("losses", "logprobs", "entropies", "kl", "flags"):
        assert torch.equal(getattr(out, field)[[0, 2]], getattr(clean_out, field)[[0, 2]])
    assert torch.equal(logits[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_other_rows(isa, dtype):
    logits = torch.randn(12, 2051).to(dtype)
    rows = random_rows(logits, 2051, torch.Generator().manual_seed(5))
    settings = K.LossSettings(entropy_coef=0.1, kl_coef=0.1)
    a, b = logits.clone(), logits.clone()
    first, second = K.paw_loss(a, rows, settings), K.paw_loss(b, rows, settings)
    assert torch.equal(a, b)
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x, y)
    order = torch.randperm(12)
    shuffled = K.LossRows(**{f.name: getattr(rows, f.name)[order] for f in dataclasses.fields(rows)})
    c = torch.empty(logits.numel() + 1, dtype=dtype)[1:].view(12, 2051).copy_(logits[order])
    third = K.paw_loss(c, shuffled, settings)
    assert torch.equal(c, a[order])
    assert torch.equal(third.losses, first.losses[order])


def head(num=9, hidden=16, vocab=50):
    g = torch.Generator().manual_seed(11)
    x = torch.randn(num, hidden, generator=g).requires_grad_()
    w = torch.randn(vocab, hidden, generator=g).requires_grad_()
    rows = random_rows((x @ w.T).detach(), vocab, g)
    return x, w, rows


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_autograd(factor):
    x, w, rows = head()
    settings = K.LossSettings(kl_coef=0.1, entropy_coef=0.02)
    (factor * paw_loss_reference(x @ w.T, rows, settings).loss).backward()
    want = x.grad.clone(), w.grad.clone()
    x.grad = w.grad = None
    (factor * K.paw_loss(x @ w.T, rows, settings).loss).backward()
    torch.testing.assert_close(x.grad, want[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w.grad, want[1], rtol=1e-4, atol=1e-5)


def test_micro_batches_give_the_same_gradient():
    x, w, rows = head()
    settings = K.LossSettings()
    K.paw_loss(x @ w.T, rows, settings).loss.backward()
    want = x.grad.clone(), w.grad.clone()
    x.grad = w.grad = None
    for part in (slice(0, 2), slice(2, 7), slice(7, 9)):
        cut = K.LossRows(**{f.name: getattr(rows, f.name)[part] for f in dataclasses.fields(rows)})
        K.paw_loss(x[part] @ w.T, cut, settings).loss.backward()
    torch.testing.assert_close(x.grad, want[0])
    torch.testing.assert_close(w.grad, want[1])


def test_second_backward_is_an_error():
    x, w, rows = head()
    logits = x @ w.T
    seen = []
    logits.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    loss = K.paw_loss(logits, rows, K.LossSettings()).loss
    loss.backward(retain_graph=True)
    assert seen == [logits.data_ptr()]
    with pytest.raises(RuntimeError, match="handed over already"):
        loss.backward()


def test_writing_to_the_gradient_before_backward_is_an_error():
    x, w, rows = head()
    logits = x @ w.T
    loss = K.paw_loss(logits, rows, K.LossSettings()).loss
    with torch.no_grad():
        logits.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_other_users_of_the_logits_get_an_error():
    x, w, rows = head()
    logits = x @ w.T
    squares = (logits * logits).sum()
    loss = K.paw_loss(logits, rows, K.LossSettings()).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + squares).backward()


def test_no_grad_mode_also_writes_the_buffer():
    x, w, rows = head()
    with torch.no_grad():
        logits = x @ w.T
        out = K.paw_loss(logits, rows, K.LossSettings())
    assert not out.loss.requires_grad
    with torch.inference_mode():
        again = x @ w.T
        K.paw_loss(again, rows, K.LossSettings())
        assert torch.equal(again, logits)


def test_peak_extra_memory_is_per_row_only():
    """The op allocates six vectors and nothing of the size of the logits, according to the log of the allocator."""
    logits = torch.randn(64, 20000)
    rows = random_rows(logits, 20000, torch.Generator().manual_seed(1))
    with torch.profiler.profile(profile_memory=True) as profile:
        K.paw_loss(logits, rows, K.LossSettings())
    allocated = sum(e.cpu_memory_usage for e in profile.events() if e.cpu_memory_usage > 0)
    assert allocated < logits.numel() * 4 * 0.01


def test_gradcheck_of_the_reference():
    logits = torch.randn(6, 5, dtype=torch.float64)
    rows = random_rows(logits, 5, torch.Generator().manual_seed(2))
    rows = dataclasses.replace(rows, kinds=torch.tensor([1, 1, 1, 2, 2, 0], dtype=torch.uint8))
    settings = K.LossSettings(kl_coef=0.3, entropy_coef=0.2, tau=0.15)
    assert torch.autograd.gradcheck(lambda x: paw_loss_reference(x, rows, settings).loss, logits.requires_grad_())


def test_opcheck():
    from paw_fast.kernels.paw_loss import op_arguments

    x, w, rows = head()
    settings = K.LossSettings(kl_coef=0.1)
    with torch.no_grad():
        logits = x @ w.T
    torch.library.opcheck(torch.ops.paw_fast.paw_loss_.default, (logits, *op_arguments(logits, rows, settings)))
    torch.library.opcheck(torch.ops.paw_fast.scale_.default, (logits, torch.tensor(0.5)))


def test_compiles_without_graph_breaks():
    x, w, rows = head()
    settings = K.LossSettings(kl_coef=0.1)

    def step(x, w):
        return K.paw_loss(x @ w.T, rows, settings).loss

    step(x, w).backward()
    want = x.grad.clone(), w.grad.clone()
    x.grad = w.grad = None
    torch.compile(step, fullgraph=True, backend="aot_eager")(x, w).backward()
    torch.testing.assert_close(x.grad, want[0])
    torch.testing.assert_close(w.grad, want[1])


BAD_SETTINGS = {
    "clip_low": 1.5,
    "clip_high": -0.1,
    "dual_clip": 1.0,
    "kl_coef": -1.0,
    "kl_clamp": 0.0,
    "entropy_coef": float("nan"),
    "wm_loss": "mse",
    "tau": 0.0,
    "temperature": 0.0,
    "wm_temperature": 0.0,
    "softcap": 0.0,
    "valid_vocab": 0,
    "grad_scale": 0.0,
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_invalid_settings_are_errors(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        K.LossSettings(**{name: BAD_SETTINGS[name]})


def test_logits_that_cannot_be_overwritten_are_errors():
    x, w, rows = head(num=50, hidden=50)
    with pytest.raises(ValueError, match="leaf"):
        K.paw_loss(w, rows, K.LossSettings())
    with pytest.raises(ValueError, match="view"):
        K.paw_loss((x @ w.T).view(50, 50), rows, K.LossSettings())
    with torch.no_grad(), pytest.raises(ValueError, match=r"leaf|view"):
        K.paw_loss(w[:], rows, K.LossSettings())


def test_invalid_rows_are_errors():
    logits = torch.randn(4, 6)
    rows = random_rows(logits, 6, torch.Generator().manual_seed(1))

    def with_(**change):
        return dataclasses.replace(rows, **change)

    cases = [
        (with_(weights=rows.weights.double()), ValueError, "weights must be torch.float32"),
        (with_(kinds=rows.kinds.long()), ValueError, "kinds must be torch.uint8"),
        (with_(kinds=rows.kinds + 3), ValueError, "kinds must be 0, 1 or 2"),
        (with_(advantages=rows.advantages[:2]), ValueError, r"advantages must be \[4\]"),
        (with_(targets=rows.targets + 6, kinds=torch.ones(4, dtype=torch.uint8)), IndexError, "outside the vocabulary"),
    ]
    before = logits.clone()
    for bad, error, message in cases:
        with pytest.raises(error, match=message):
            K.paw_loss(logits, bad, K.LossSettings())
    with pytest.raises(ValueError, match="ref_logprobs is None"):
        K.paw_loss(logits, with_(ref_logprobs=None), K.LossSettings(kl_coef=0.1))
    assert torch.equal(logits, before)
