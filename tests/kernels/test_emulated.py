"""The CUDA kernels as they stand, run by threads of the CPU (tests/kernels/emulator), against float64.

What this can show: indices, tails, alignment, barriers, the exchange inside a cluster, the dispatch. What it cannot:
speed, the memory order of a GPU, the approximate instructions' last bits. Those need a GPU.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from paw_fast import kernels as K
from paw_fast.kernels import native
from paw_fast.kernels.reference import paw_loss_reference, token_logprobs_reference

from .helpers import DTYPES, assert_close, assert_gradient, random_rows, random_transitions

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


class OnCuda:
    """The extension, with every op sent to its CUDA kernels."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        found = getattr(self._module, name)
        if name in self._module.ops:
            return lambda cuda, where, fields: found(True, 0, fields)
        return found


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    cmake = shutil.which("cmake")
    pybind11 = importlib.util.find_spec("pybind11")
    if cmake is None or pybind11 is None or pybind11.origin is None:
        pytest.skip("needs cmake and pybind11 to build the emulated kernels")
    folder = tmp_path_factory.mktemp("emulated")
    where = Path(pybind11.origin).parent / "share" / "cmake" / "pybind11"
    for command in (
        [cmake, "-S", ROOT, "-B", folder, "-DPAW_FAST_EMULATE=ON", f"-DPython_EXECUTABLE={sys.executable}",
         f"-Dpybind11_DIR={where}"],
        [cmake, "--build", folder, "-j", "2"],
    ):  # fmt: skip
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=580, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    spec = importlib.util.spec_from_file_location("_native", next(folder.glob("_native*.so")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return OnCuda(module)


@pytest.fixture
def cuda(emulated, monkeypatch):
    monkeypatch.setattr(native, "_native", emulated)


def choose(monkeypatch, path, cluster=""):
    monkeypatch.setenv("PAW_FAST_CUDA_PATH", path)
    monkeypatch.setenv("PAW_FAST_CUDA_CLUSTER", str(cluster))


def check_loss(logits, vocab, settings, seed, gap=0):
    """One call of paw_loss against float64, the first row ignored and full of NaN, the padding too."""
    g = torch.Generator().manual_seed(seed)
    num, width = logits.shape
    rows = random_rows(logits, vocab, g, temperature=settings.temperature, softcap=settings.softcap)
    rows.kinds[0] = K.IGNORED
    settings = dataclasses.replace(settings, valid_vocab=vocab)
    exact_in = logits.double().requires_grad_()
    exact = paw_loss_reference(exact_in, rows, settings)
    exact.loss.backward()
    buffer = torch.full((num, width + gap), 77.0, dtype=logits.dtype)
    mine = buffer[:, :width].copy_(logits)
    mine[0] = torch.nan
    mine[:, vocab:] = torch.nan
    got = K.paw_loss(mine, rows, settings)
    coldest = min(settings.temperature, settings.wm_temperature)
    largest = max(1.0, logits.double().abs().max().item() / coldest)
    for name in ("logprobs", "entropies", "losses", "kl"):
        assert_close(getattr(got, name), getattr(exact, name), 4e-5 * largest, name)
    assert torch.equal(got.flags, exact.flags)
    assert_gradient(mine, exact_in.grad, 60 * largest / coldest, "logits")
    assert not mine[0].any()
    assert not mine[:, vocab:].any()
    assert (buffer[:, width:] == 77.0).all()


ROUTES = [("plain", ""), ("cluster", 1), ("cluster", 2), ("cluster", 4), ("cluster", 8)]
BUSY = K.LossSettings(kl_coef=0.1, kl_clamp=0.1, entropy_coef=0.02, dual_clip=3.0, wm_temperature=0.8)


@pytest.mark.parametrize(("path", "cluster"), ROUTES)
@pytest.mark.parametrize(
    ("dtype", "vocab", "padding"),
    [
        (torch.bfloat16, 1, 0), (torch.float32, 65, 3), (torch.bfloat16, 4104, 0), (torch.float32, 4104, 8),
        (torch.float16, 8193, 7), (torch.bfloat16, 35000, 16),
    ],
)  # fmt: skip
def test_loss(cuda, monkeypatch, path, cluster, dtype, vocab, padding):
    choose(monkeypatch, path, cluster)
    check_loss((torch.randn(3, vocab + padding) * 3).to(dtype), vocab, BUSY, seed=vocab)


def test_loss_of_rows_that_do_not_fit(cuda, monkeypatch):
    """Without clusters 280 KB of logits: most of them kept, the rest read twice."""
    choose(monkeypatch, "plain")
    check_loss(torch.randn(2, 70001), 70001, BUSY, seed=1)


@hypothesis_settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    route=st.sampled_from(ROUTES),
    num=st.integers(1, 3),
    vocab=st.one_of(st.integers(1, 300), st.integers(8000, 9000)),
    dtype=st.sampled_from(DTYPES),
    padding=st.integers(0, 20),
    gap=st.integers(0, 9),
    spread=st.sampled_from([0.1, 3.0, 8.0]),
    settings=st.builds(
        K.LossSettings,
        kl_coef=st.sampled_from([0.0, 0.1]),
        kl_clamp=st.sampled_from([None, 0.05]),
        entropy_coef=st.sampled_from([0.0, 0.1]),
        wm_loss=st.sampled_from(["cmae", "mae", "ce"]),
        temperature=st.sampled_from([0.4, 1.0]),
        wm_temperature=st.sampled_from([0.7, 1.0]),
        softcap=st.sampled_from([None, 5.0]),
    ),
)
def test_loss_everywhere(cuda, seed, route, num, vocab, dtype, padding, gap, spread, settings):
    g = torch.Generator().manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, *route)
        check_loss((torch.randn(num, vocab + padding, generator=g) * spread).to(dtype), vocab, settings, seed, gap)


@pytest.mark.parametrize("path", ["plain", "cluster"])
@pytest.mark.parametrize(("dtype", "vocab"), [(torch.float32, 37), (torch.bfloat16, 33001), (torch.float16, 66000)])
def test_token_logprobs(cuda, monkeypatch, path, dtype, vocab):
    choose(monkeypatch, path)
    logits = (torch.randn(2, vocab + 3) * 3).to(dtype).requires_grad_()
    exact_in = logits.detach().double().requires_grad_()
    targets = torch.tensor([vocab - 1, vocab // 2])
    mine = K.token_logprobs(logits, targets, 0.7, valid_vocab=vocab)
    want = token_logprobs_reference(exact_in, targets, 0.7, valid_vocab=vocab)
    for name, got, exact in zip(mine._fields, mine, want, strict=True):
        assert_close(got, exact, 2e-5, name)
    upstream = torch.randn(3, 2)
    sum((upstream[i] * mine[i]).sum() for i in range(3)).backward()
    sum((upstream[i] * want[i]).sum() for i in range(3)).backward()
    assert_gradient(logits.grad, exact_in.grad, 100.0, "logits")


def test_few_rows_and_many_give_the_same_bits(cuda, monkeypatch):
    """The blocks of a cluster, one block, and (auto, with more rows than the device wants) whatever is chosen."""
    logits = torch.randn(10, 65537).bfloat16()
    targets = torch.randint(0, 65537, (10,))
    choose(monkeypatch, "auto")
    many = K.token_logprobs(logits, targets)
    few = K.token_logprobs(logits[3:5].clone(), targets[3:5])
    for path in ("plain", "cluster"):
        choose(monkeypatch, path)
        for got, first, second in zip(K.token_logprobs(logits[3:5], targets[3:5]), many, few, strict=True):
            assert torch.equal(got, first[3:5])
            assert torch.equal(got, second)


@pytest.mark.parametrize(("path", "cluster"), [("plain", ""), ("cluster", 2)])
def test_same_row_same_bits_at_any_address(cuda, monkeypatch, path, cluster):
    choose(monkeypatch, path, cluster)
    vocab = 9001  # rows of an odd number of elements: each begins at another address modulo 16
    for dtype in DTYPES:
        logits = (torch.randn(9, vocab) * 3).to(dtype)
        rows = random_rows(logits, vocab, torch.Generator().manual_seed(4))
        together = logits.clone()
        whole = K.paw_loss(together, rows, BUSY)
        for i in (0, 3, 8):
            part = K.LossRows(**{f.name: getattr(rows, f.name)[i : i + 1] for f in dataclasses.fields(rows)})
            alone = logits[i : i + 1].clone()
            got = K.paw_loss(alone, part, BUSY)
            assert torch.equal(alone[0], together[i])
            for name in ("losses", "logprobs", "entropies", "kl", "flags"):
                assert torch.equal(getattr(got, name)[0], getattr(whole, name)[i])


@pytest.mark.parametrize(("path", "cluster"), [("plain", ""), ("cluster", 4)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "all -inf"])
def test_bad_row_touches_no_other(cuda, monkeypatch, path, cluster, bad):
    choose(monkeypatch, path, cluster)
    logits = torch.randn(3, 1500)
    rows = random_rows(logits, 1500, torch.Generator().manual_seed(3))
    rows = dataclasses.replace(rows, kinds=torch.tensor([1, 1, 2], dtype=torch.uint8))
    clean = logits.clone()
    clean_out = K.paw_loss(clean, rows, K.LossSettings())
    if bad == "all -inf":
        logits[1] = -torch.inf
    else:
        logits[1, 700] = bad
    out = K.paw_loss(logits, rows, K.LossSettings())
    assert out.losses[1].isnan()
    assert logits[1].isnan().all()
    assert torch.equal(logits[[0, 2]], clean[[0, 2]])
    assert torch.equal(out.losses[[0, 2]], clean_out.losses[[0, 2]])


def test_blocks_with_nothing_finite(cuda, monkeypatch):
    """-inf in the whole slice of a block, and of a part: its sums are zeros that the merge leaves out."""
    logits = torch.randn(2, 66000)
    logits[0, :40000] = -torch.inf
    logits[1, 10000:] = -torch.inf
    targets = torch.tensor([65000, 3])
    exact_in = logits.double().requires_grad_()
    rows = random_rows(logits, 66000, torch.Generator().manual_seed(3))
    rows = dataclasses.replace(rows, kinds=torch.tensor([1, 2], dtype=torch.uint8), targets=targets)
    rows = dataclasses.replace(rows, old_logprobs=token_logprobs_reference(exact_in, targets).logprobs.float().detach())
    paw_loss_reference(exact_in, rows, K.LossSettings()).loss.backward()
    for path in ("plain", "cluster"):
        choose(monkeypatch, path)
        got = K.token_logprobs(logits, targets)
        for mine, exact in zip(got, token_logprobs_reference(logits.double(), targets), strict=True):
            assert_close(mine, exact, 2e-5, path)
        gradient = logits.clone()
        K.paw_loss(gradient, rows, K.LossSettings())
        assert_gradient(gradient, exact_in.grad, 60.0, path)
        assert not gradient[0, :40000].any()


def test_upstream_gradient_scales_in_place(cuda):
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(70, 4)
    rows = random_rows((x @ w.T).detach(), 70, torch.Generator().manual_seed(1))
    (0.25 * K.paw_loss(x @ w.T, rows, BUSY).loss).backward()
    got, x.grad = x.grad.clone(), None
    (0.25 * paw_loss_reference(x @ w.T, rows, BUSY).loss).backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-4, atol=1e-5)


@hypothesis_settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    num=st.one_of(st.integers(1, 30), st.sampled_from([511, 512, 513, 1025, 1700])),  # one to four blocks
    dtype=st.sampled_from([torch.float32, torch.float64]),
    alpha=st.floats(0.001, 1.0),
    decimals=st.sampled_from([0, 1, 7]),
    mode=st.sampled_from(K.SELECTION_MODES),
    share=st.sampled_from([None, 0.0, 0.3, 0.9]),
)
def test_selection_has_the_bits_of_the_cpu(emulated, seed, num, dtype, alpha, decimals, mode, share):
    case = random_transitions(num, seed, dtype, decimals, share)

    def select():
        return K.select_transitions(**case, alpha=alpha, mode=mode, generator=torch.Generator().manual_seed(seed))

    want = select()  # checked against a stable sort in test_select_transitions.py
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_native", emulated)
        got = select()
    for name, mine, exact in zip(got._fields, got, want, strict=True):
        assert torch.equal(mine.nan_to_num(-1.0), exact.nan_to_num(-1.0)), name


def test_selection_clamps_offsets_that_do_not_fit(cuda, monkeypatch):
    """As on a GPU, where they are not checked first: nothing outside the tokens is read or written."""
    monkeypatch.setattr(sys.modules["paw_fast.kernels.select_transitions"], "_check_offsets", lambda *_: None)
    offsets = torch.tensor([2, 5, 1, 900])
    got = K.select_transitions(torch.ones(6), offsets, offsets, torch.ones(3), 1.0, 6)
    assert got.mean_entropies.tolist() == [1.0, 0.0, 1.0]
    assert got.selected.all()


def test_where_a_cluster_cannot_be_placed(cuda, monkeypatch):
    """On a slice of a device (MIG) the plain path is taken, to its bits; asking for clusters is an error."""
    logits = torch.randn(3, 66000).bfloat16()
    rows = random_rows(logits, 66000, torch.Generator().manual_seed(3))
    choose(monkeypatch, "plain")
    want = logits.clone()
    K.paw_loss(want, rows, BUSY)
    scored = K.token_logprobs(logits, rows.targets)
    monkeypatch.setenv("PAW_EMULATE_NO_CLUSTERS", "1")
    choose(monkeypatch, "auto")
    got = logits.clone()
    K.paw_loss(got, rows, BUSY)
    assert torch.equal(got, want)
    assert torch.equal(K.token_logprobs(logits, rows.targets).entropies, scored.entropies)
    choose(monkeypatch, "cluster")
    with pytest.raises(RuntimeError, match="cannot place its blocks"):
        K.paw_loss(got, rows, BUSY)
    with pytest.raises(RuntimeError, match="cannot place a cluster"):
        K.token_logprobs(logits, rows.targets)


def test_switches_are_checked(cuda, monkeypatch):
    rows = random_rows(torch.zeros(1, 9), 9, torch.Generator().manual_seed(1))
    choose(monkeypatch, "fast")
    with pytest.raises(ValueError, match="expected auto, plain or cluster"):
        K.paw_loss(torch.zeros(1, 9), rows, BUSY)
    choose(monkeypatch, "cluster", 3)
    with pytest.raises(ValueError, match="expected 1, 2, 4 or 8"):
        K.paw_loss(torch.zeros(1, 9), rows, BUSY)
    choose(monkeypatch, "cluster", 1)
    with pytest.raises(RuntimeError, match="does not fit"):
        K.paw_loss(torch.zeros(1, 70000), random_rows(torch.zeros(1, 70000), 9, torch.Generator()), BUSY)
