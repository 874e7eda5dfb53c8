"""Training steps of the learner with LoRA adapters: with each kind of critic, only adapters and heads change."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from paw_fast.algorithms.base import make_algorithm
from paw_fast.algorithms.world_model import select
from paw_fast.config import LoraConfig, load_preset, with_algo
from paw_fast.learner import Learner
from paw_fast.models import tiny
from paw_fast.models.lora import add_adapters
from paw_fast.models.policy import BasePolicy, Policy
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

pytest.importorskip("peft", reason="needs the extra lora")

VOCAB = 80


def episodes(layout):
    rng = np.random.default_rng(0)
    draw = lambda count: tuple(int(i) for i in rng.integers(5, VOCAB, count))  # noqa: E731
    found = []
    for number in range(4):
        prompt, turns = draw(6), []
        for _ in range(2):
            action, seen = draw(3), draw(4)
            gain = 10.0 * (number % 2) * len(turns)
            turns.append(Transition(prompt, action, (-1.0,) * 3, seen, (True,) * 4, "c", "o", "s", gain, True))
            prompt = prompt + action + seen if layout == "trajectory" else draw(5)
        reward = 10.0 * (number % 2)
        found.append(
            Trajectory(Task("t"), EpisodeId(0, number // 2, number % 2), tuple(turns), reward, reward, reward > 0)
        )
    return found


def make_learner(algo, backbone, layout):
    model = tiny.build_model(VOCAB, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, seed=1)
    config = with_algo(load_preset("tiny"), algo)
    config = dataclasses.replace(
        config, layout=layout, lora=LoraConfig(rank=4), critic=dataclasses.replace(config.critic, backbone=backbone),
        algo=dataclasses.replace(config.algo, kl_coef=0.1, minibatches=1),
        optim=dataclasses.replace(config.optim, learning_rate=1e-2),
    )  # fmt: skip
    adapter = add_adapters(model, config.lora, "m")
    return Learner(Policy(model, None, adapter), BasePolicy(model, None, adapter), config)


@pytest.mark.parametrize("layout", ["window", "trajectory"])
@pytest.mark.parametrize(("algo", "backbone"), [("grpo", "own"), ("ppo", "own"), ("ppo", "shared")])
def test_only_adapters_and_value_heads_change(algo, backbone, layout):
    learner = make_learner(algo, backbone, layout)
    model = learner.policy.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = None
    for step in range(2):
        batch = learner.make_batch(episodes(layout))
        stats = learner.compute_token_stats(batch)
        reference = np.concatenate(stats.ref_logprobs)
        if first is None:  # the adapters are zero, so that the policy is its own reference
            first = reference
            np.testing.assert_array_equal(np.concatenate(stats.old_logprobs), reference)
        np.testing.assert_array_equal(reference, first)
        credit = make_algorithm(learner.config).credit(batch, stats)
        metrics = learner.update(batch, stats, credit, select(batch, stats, learner.config, step), step)
        assert metrics["optim/grad_norm"] > 0
    assert metrics["policy/kl"] > 0
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    if algo == "ppo":
        state = copy.deepcopy(learner.critic.state_dict())
        assert state["head"]["weight"].abs().max() > 0
        if backbone == "own":
            theirs = learner.critic.backbone.model
            assert any(not torch.equal(p, before[n]) for n, p in theirs.named_parameters() if "lora_" in n)
            other = make_learner(algo, backbone, layout).critic
            other.load_state_dict(state)
            for name, tensor in other.backbone.model.state_dict().items():
                assert torch.equal(tensor, theirs.state_dict()[name])
