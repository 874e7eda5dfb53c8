"""The value loss by hand and by finite differences; the critic's two backbones; its state."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.config import CriticConfig, OptimConfig, TrainConfig, algo_config
from paw_fast.learner.critic import NoCritic, SeparateCritic, SharedCritic, make_critic, value_loss
from paw_fast.models import tiny
from paw_fast.models.policy import Policy

number = st.floats(-3, 3)


def test_by_hand():
    values, old, targets = torch.tensor([2.0, 0.2]), torch.zeros(2), torch.tensor([3.0, 1.0])
    # First: (2 - 3)^2 = 1, clipped to 0.5: (0.5 - 3)^2 = 6.25, the larger. Second: not clipped, 0.64.
    loss, clipped = value_loss(values, old, targets, torch.tensor([1.0, 0.5]), 0.5)
    assert float(loss) == pytest.approx(0.5 * (6.25 + 0.5 * 0.64))
    assert clipped.tolist() == [True, False]
    assert float(value_loss(values, old, targets, torch.ones(2), None)[0]) == pytest.approx(0.5 * 1.64)


@given(st.lists(st.tuples(number, number, number), min_size=1, max_size=8), st.sampled_from([None, 0.2, 0.5]))
def test_the_gradient_is_that_of_finite_differences(rows, clip):
    values, old, targets = (torch.tensor(c, dtype=torch.float64) for c in zip(*rows, strict=True))
    weights = torch.linspace(0.2, 1.0, len(rows), dtype=torch.float64)
    # Away from the corners of max and clamp.
    edge = (values - old).abs() - (clip or 9e9)
    near = torch.where(edge > 0, old + (values - old).sign() * (clip or 0.0), values)
    tie = ((values - targets) ** 2 - (near - targets) ** 2).abs()
    if bool((edge.abs() < 1e-3).any() | ((tie < 1e-3) & (edge > 0)).any()):
        return
    values.requires_grad_()
    value_loss(values, old, targets, weights, clip)[0].backward()
    h = 1e-6
    for i in range(len(rows)):
        step = torch.zeros_like(old)
        step[i] = h
        with torch.no_grad():
            up, down = (value_loss(values + s, old, targets, weights, clip)[0] for s in (step, -step))
        assert values.grad[i].item() == pytest.approx(float(up - down) / (2 * h), abs=1e-5)


@pytest.fixture
def policy():
    return Policy(tiny.build_model(60, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, seed=3), None)


def make(policy, backbone, **settings):
    critic = CriticConfig(backbone=backbone, **settings)
    return make_critic(policy, TrainConfig(algo=algo_config("ppo"), critic=critic))


def test_the_algorithm_and_the_backbone_decide_the_class(policy):
    assert type(make(policy, "own")) is SeparateCritic
    assert type(make(policy, "shared")) is SharedCritic
    assert type(make_critic(policy, TrainConfig())) is NoCritic
    assert make_critic(policy, TrainConfig()).parameter_groups() == []


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_values_begin_at_zero_and_a_state_comes_back(policy, backbone):
    critic = make(policy, backbone)
    hidden = torch.randn(5, 32)
    assert critic.values(hidden).tolist() == [0.0] * 5
    with torch.no_grad():
        critic.head.weight.normal_()
    saved = copy.deepcopy(critic.state_dict())
    other = make(policy, backbone)
    other.load_state_dict(saved)
    torch.testing.assert_close(other.values(hidden), critic.values(hidden), rtol=0, atol=0)
    wrong = make(policy, {"own": "shared", "shared": "own"}[backbone])
    with pytest.raises(ValueError, match=r"--critic\.backbone"):
        wrong.load_state_dict(saved)


def test_a_backbone_of_its_own_leaves_the_policy_alone(policy):
    before = copy.deepcopy(policy.model.state_dict())
    critic = SeparateCritic(policy, CriticConfig(learning_rate=0.1), OptimConfig())
    with torch.no_grad():
        critic.head.weight.normal_()
    ids = torch.arange(6)
    hidden = critic.backbone.hidden(ids, torch.arange(6), (6,))
    value_loss(critic.values(hidden), torch.zeros(6), torch.ones(6), torch.ones(6), None)[0].backward()
    assert critic.step() > 0
    after = critic.backbone.model.state_dict()
    assert any(not torch.equal(after[k], v) for k, v in before.items())
    assert all(torch.equal(policy.model.state_dict()[k], v) for k, v in before.items())
