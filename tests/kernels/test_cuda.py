"""The same ops on a GPU: against float64, in a CUDA graph, on another stream, on the second device, without waiting."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from paw_fast import kernels as K
from paw_fast.kernels.reference import paw_loss_reference, token_logprobs_reference

from .helpers import DTYPES, assert_close, assert_gradient, random_rows, random_transitions

REASON = K.unavailable_reason("paw_loss", "cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no CUDA kernels: {REASON}")]

ROUTES = [("plain", ""), ("auto", ""), ("auto", "1"), ("auto", "2"), ("auto", "4"), ("auto", "8")]
SETTINGS = K.LossSettings(kl_coef=0.1, entropy_coef=0.02, dual_clip=3.0)


def to_device(rows: K.LossRows, device) -> K.LossRows:
    return K.LossRows(
        **{f.name: None if (v := getattr(rows, f.name)) is None else v.to(device) for f in dataclasses.fields(rows)}
    )


def case(num, vocab, dtype=torch.bfloat16, device="cuda", seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(num, vocab, generator=g) * 3).to(dtype)
    return logits.to(device), to_device(random_rows(logits, vocab, g), device)


@hypothesis_settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    route=st.sampled_from(ROUTES),
    num=st.integers(1, 40),
    vocab=st.one_of(st.integers(1, 300), st.integers(8000, 9000), st.integers(30000, 160000)),
    dtype=st.sampled_from(DTYPES),
    padding=st.integers(0, 20),
    gap=st.integers(0, 9),
    softcap=st.sampled_from([None, 5.0]),
    temperature=st.sampled_from([0.4, 1.0]),
)
def test_matches_float64(seed, route, num, vocab, dtype, padding, gap, softcap, temperature):
    g = torch.Generator().manual_seed(seed)
    width = vocab + padding
    host = (torch.randn(num, width, generator=g) * 3).to(dtype)
    settings = dataclasses.replace(SETTINGS, softcap=softcap, temperature=temperature, valid_vocab=vocab)
    rows = random_rows(host, vocab, g, temperature=temperature, softcap=softcap)
    exact_in = host.double().requires_grad_()
    exact = paw_loss_reference(exact_in, rows, settings)
    exact.loss.backward()
    buffer = torch.full((num, width + gap), 77.0, dtype=dtype, device="cuda")
    logits = buffer[:, :width].copy_(host)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAW_FAST_CUDA_PATH", route[0])
        patch.setenv("PAW_FAST_CUDA_CLUSTER", route[1])
        a = K.token_logprobs(logits, rows.targets.cuda(), temperature, softcap=softcap, valid_vocab=vocab)
        got = K.paw_loss(logits, to_device(rows, "cuda"), settings)
    largest = max(1.0, host.double().abs().max().item() / temperature)
    want = token_logprobs_reference(host.double(), rows.targets, temperature, softcap=softcap, valid_vocab=vocab)
    for name, mine, other in zip(a._fields, a, want, strict=True):
        assert_close(mine.cpu(), other, 4e-6 * largest, name)
    for name in ("logprobs", "entropies", "losses", "kl"):
        assert_close(getattr(got, name).cpu(), getattr(exact, name), 4e-5 * largest, name)
    assert_gradient(logits.cpu(), exact_in.grad, 60 * largest / temperature, "logits")
    assert (buffer[:, width:] == 77.0).all()


def test_twice_and_in_another_batch_to_the_same_bits():
    logits, rows = case(600, 151936)
    together = logits.clone()
    first = K.paw_loss(together, rows, SETTINGS)
    again = logits.clone()
    second = K.paw_loss(again, rows, SETTINGS)
    assert torch.equal(together, again)
    assert torch.equal(first.losses, second.losses)
    part = K.LossRows(**{f.name: getattr(rows, f.name)[7:9] for f in dataclasses.fields(rows)})
    alone = logits[7:9].clone()
    K.paw_loss(alone, part, SETTINGS)
    assert torch.equal(alone, together[7:9])
    # 600 rows and 2 rows take different paths through token_logprobs.
    for many, few in zip(
        K.token_logprobs(logits, rows.targets), K.token_logprobs(logits[7:9], rows.targets[7:9]), strict=True
    ):
        assert torch.equal(many[7:9], few)


def test_more_than_two_to_the_31_logits():
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GB of GPU memory")
    block, rows = case(512, 1 << 16)
    logits = block.repeat(65, 1)
    every = K.LossRows(**{f.name: getattr(rows, f.name).repeat(65) for f in dataclasses.fields(rows)})
    want, got = K.paw_loss(block, rows, SETTINGS), K.paw_loss(logits, every, SETTINGS)
    assert torch.equal(got.losses.view(65, 512), want.losses.expand(65, 512))
    assert torch.equal(logits[-512:], block)


def test_target_outside_the_vocabulary_is_nan_in_its_row_alone():
    logits, rows = case(3, 1000)
    rows.targets[1], rows.kinds[:] = 1000, K.WORLD_MODEL
    out = K.paw_loss(logits, rows, K.LossSettings(wm_loss="ce"))
    assert out.losses.isnan().tolist() == [False, True, False]
    assert logits[1].isnan().all()
    assert logits[[0, 2]].isfinite().all()


@pytest.mark.parametrize("num", [1, 10, 1000, 200_000, 3_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_selection_has_the_bits_of_the_cpu(num, dtype):
    for mode, decimals, share in (("entropy", 7, None), ("entropy", 1, 0.8), ("lowest", 0, 0.5), ("all", 7, 0.3)):
        case = random_transitions(num, num, dtype, decimals, share)
        there = {name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in case.items()}
        want = K.select_transitions(**case, alpha=0.7, mode=mode)
        for _ in range(2):
            got = K.select_transitions(**there, alpha=0.7, mode=mode)
            for mine, exact in zip(got, want, strict=True):
                assert torch.equal(mine.cpu().nan_to_num(-1.0), exact.nan_to_num(-1.0))


def test_in_a_cuda_graph():
    logits, rows = case(16, 40000)
    static = logits.clone()
    warm = torch.cuda.Stream()
    with torch.cuda.stream(warm):
        K.token_logprobs(static, rows.targets)
        K.paw_loss(static.clone(), rows, SETTINGS)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scored = K.token_logprobs(static, rows.targets)
        lost = K.paw_loss(static, rows, SETTINGS)
    for seed in (1, 2):
        fresh, _ = case(16, 40000, seed=seed)
        static.copy_(fresh)
        graph.replay()
        want = K.token_logprobs(fresh, rows.targets)
        assert torch.equal(scored.logprobs, want.logprobs)
        assert torch.equal(lost.losses, K.paw_loss(fresh, rows, SETTINGS).losses)
        assert torch.equal(static, fresh)


def test_on_another_stream():
    """The kernel waits for what its own stream does before it, and for nothing else."""
    logits, rows = case(64, 100000)
    want = K.token_logprobs(logits, rows.targets)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.zeros_like(logits)
        torch.cuda._sleep(50_000_000)
        late.copy_(logits)
        got = K.token_logprobs(late, rows.targets)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(got.logprobs, want.logprobs)


def test_nothing_waits_for_the_device():
    x = torch.randn(64, 32, device="cuda", requires_grad=True)
    w = torch.randn(5000, 32, device="cuda", requires_grad=True)
    _, rows = case(64, 5000)
    offsets = torch.arange(65, device="cuda")
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*prototype feature")  # said once, when the mode is first set
            torch.cuda.set_sync_debug_mode("error")
        out = K.linear_paw_loss(x, w, rows, SETTINGS, chunk_bytes=1 << 18)
        out.loss.backward()
        K.select_transitions(out.entropies, offsets, offsets, torch.ones(64, device="cuda"), 0.5, 64)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_on_the_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    logits, rows = case(8, 5000, device="cuda:1")
    with torch.cuda.device(0):
        out = K.paw_loss(logits, rows, SETTINGS)
    assert out.losses.device == torch.device("cuda:1")
    other, rows = case(8, 5000, device="cuda:0")
    assert torch.equal(K.paw_loss(other, rows, SETTINGS).losses.cpu(), out.losses.cpu())
    with pytest.raises(ValueError, match="is on cuda:0"):
        K.token_logprobs(logits, rows.targets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_bytes", [1 << 18, 1 << 30])
def test_linear_paw_loss(dtype, chunk_bytes):
    g = torch.Generator().manual_seed(3)
    x, w = torch.randn(300, 64, generator=g).to(dtype), (torch.randn(2000, 64, generator=g) * 0.3).to(dtype)
    rows = random_rows((x.float() @ w.float().T), 2000, g)
    exact = [t.double().requires_grad_() for t in (x, w)]
    paw_loss_reference(exact[0] @ exact[1].T, rows, SETTINGS).loss.backward()
    mine = [t.cuda().requires_grad_() for t in (x, w)]
    K.linear_paw_loss(*mine, to_device(rows, "cuda"), SETTINGS, chunk_bytes=chunk_bytes).loss.backward()
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.004}[dtype]
    for got, want in zip(mine, exact, strict=True):
        assert (got.grad.cpu().double() - want.grad).norm() / want.grad.norm() < tolerance


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # Inductor's advice about the fp32 product below
def test_compiles_without_graph_breaks():
    logits, rows = case(16, 3000, torch.float32)
    x = torch.randn(16, 32, device="cuda", requires_grad=True)
    w = torch.randn(3000, 32, device="cuda")

    def step(x):
        return K.paw_loss(x @ w.T, rows, SETTINGS).loss

    step(x).backward()
    want, x.grad = x.grad.clone(), None
    torch.compile(step, fullgraph=True)(x).backward()
    torch.testing.assert_close(x.grad, want, rtol=1e-4, atol=1e-5)
    assert logits.is_cuda
