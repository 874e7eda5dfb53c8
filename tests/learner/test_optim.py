"""Float32 copies of low-precision weights: the small updates of RL arrive, and a resume is exact."""

import copy

import pytest
import torch

from paw_fast.learner.optim import MasterAdamW
from paw_fast.runs.checkpoint import restore_optimizer


def parameters(dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(n, generator=draw).to(dtype)) for n in (7, 3)]


def steps(optimizer, own, count, seed=1):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in own:
            p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)
        optimizer.step()
        optimizer.zero_grad()


def test_float32_weights_are_updated_as_adamw_does():
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    steps(MasterAdamW([{"params": ours}], **settings), ours, 20)
    steps(torch.optim.AdamW(theirs, **settings), theirs, 20)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_updates_below_the_spacing_of_bfloat16_add_up():
    ours, theirs = (
        [torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))],
        [torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))],
    )
    for make, own in ((lambda p: MasterAdamW([{"params": p}], lr=1e-5, weight_decay=0.0), ours),
                      (lambda p: torch.optim.AdamW(p, lr=1e-5, weight_decay=0.0), theirs)):  # fmt: skip
        optimizer = make(own)
        for _ in range(1000):
            own[0].grad = torch.ones_like(own[0])
            optimizer.step()
    # 1000 steps of 1e-5; the plain optimizer rounds each of them away.
    torch.testing.assert_close(ours[0].float(), torch.full((4,), 0.99), atol=4e-3, rtol=0)
    assert theirs[0].tolist() == [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_resumed_optimizer_goes_on_bit_for_bit(dtype):
    whole = parameters(dtype)
    optimizer = MasterAdamW([{"params": whole}], lr=1e-3)
    steps(optimizer, whole, 5)
    saved, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in whole]
    steps(optimizer, whole, 5, seed=2)
    again = [torch.nn.Parameter(w) for w in weights]
    other = MasterAdamW([{"params": again}], lr=1e-3)
    restore_optimizer(other, saved)
    steps(other, again, 5, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_a_state_of_another_precision_is_refused():
    saved = MasterAdamW([{"params": parameters(torch.float32)}], lr=1e-3).state_dict()
    with pytest.raises(ValueError, match="0 float32 copies were saved, this run has 2"):
        MasterAdamW([{"params": parameters(torch.bfloat16)}], lr=1e-3).load_state_dict(saved)


def test_gradients_are_clipped_to_a_global_norm():
    own = parameters(torch.bfloat16)
    optimizer = MasterAdamW([{"params": own}], lr=1e-3)
    own[0].grad, own[1].grad = torch.full_like(own[0], 3.0), torch.full_like(own[1], 4.0)
    norm = optimizer.clip_gradients(1.0)
    assert float(norm) == pytest.approx((7 * 9 + 3 * 16) ** 0.5, rel=1e-2)
    total = sum(float((p.grad.float() ** 2).sum()) for p in own)
    assert total == pytest.approx(1.0, rel=2e-2)


def test_a_step_frees_the_gradients_it_has_widened():
    """paw_fast.planning counts on it, and on parameters that are updated one after another."""
    for dtype in (torch.bfloat16, torch.float32):
        own = parameters(dtype)
        optimizer = MasterAdamW([{"params": own}], lr=1e-3)
        for p in own:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert all((p.grad is None) == (dtype == torch.bfloat16) for p in own)
        assert all(group["foreach"] is False for group in optimizer.param_groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_states_take_the_same_steps(dtype):
    """On the CPU `offload` still keeps copies and takes torch's fused step."""
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(7, 5, generator=draw), torch.randn(4, 7, 5, generator=draw)

    def make(offload):
        weight = torch.nn.Parameter(start.to(dtype))
        return weight, MasterAdamW([{"params": [weight]}], lr=1e-2, weight_decay=0.1, offload=offload)

    (plain, ordinary), (weight, optimizer) = make(False), make(True)
    assert optimizer.param_groups[0]["params"][0] is not weight
    for number, gradient in enumerate(gradients):
        for one, taker in ((plain, ordinary), (weight, optimizer)):
            one.grad = gradient.to(dtype)
            taker.clip_gradients(1.0)
            taker.step()
            taker.zero_grad()
        torch.testing.assert_close(weight, plain, atol=1e-6, rtol=0.0 if dtype == torch.float32 else 8e-3)
        if number == 1:  # a resumed run may change whether the state is offloaded
            states = [copy.deepcopy(one.state_dict()) for one in (optimizer, ordinary)]
            ordinary.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
            assert ordinary.param_groups[0]["foreach"] is False
            assert optimizer.param_groups[0]["fused"] is True
