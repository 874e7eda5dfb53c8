"""The update as a whole: independent of micro-batches, and of the world model where lambda is 0."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from paw_fast.algorithms.base import Credit
from paw_fast.algorithms.world_model import WorldModelWeights, token_weights
from paw_fast.config import load_preset
from paw_fast.kernels import POLICY, WORLD_MODEL, LossSettings
from paw_fast.learner import Learner, packing
from paw_fast.learner.forward_backward import backward, compute_token_stats
from paw_fast.learner.loss_rows import build_tables
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.types import EpisodeId, Task, TokenStats, Trajectory, Transition

VOCAB = 120


@pytest.fixture
def policy():
    model = tiny.build_model(VOCAB, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, seed=1)
    return Policy(model, None)


def config(layout="trajectory", **paw):
    base = load_preset("tiny")
    return dataclasses.replace(
        base,
        layout=layout,
        paw=dataclasses.replace(base.paw, **paw),
        algo=dataclasses.replace(base.algo, minibatches=1),
    )


def episodes(count=6, seed=0, layout="trajectory"):
    """Random trajectories of 1 to 4 turns, two to a group."""
    rng = np.random.default_rng(seed)
    draw = lambda low, high: tuple(int(i) for i in rng.integers(5, VOCAB, rng.integers(low, high)))  # noqa: E731
    out = []
    for number in range(count):
        prompt, turns = draw(3, 12), []
        for _ in range(int(rng.integers(1, 5))):
            action, observed = draw(1, 6), draw(2, 9)
            mask = tuple(i > 0 for i in range(len(observed)))
            turns.append(Transition(prompt, action, (-1.0,) * len(action), observed, mask, "c", "o", "s", 0.0, True))
            prompt = prompt + action + observed if layout == "trajectory" else draw(3, 12)
        reward = float(rng.integers(0, 2) * 10)
        out.append(
            Trajectory(Task("t"), EpisodeId(0, number // 2, number % 2), tuple(turns), reward, reward, reward > 0)
        )
    return out


def spread_credit(trajectories):
    """Advantages from -1 to 1, one for each trajectory."""
    values = np.linspace(-1, 1, len(trajectories))
    turns = [
        np.full(len(x.action_ids), a, np.float32)
        for a, t in zip(values, trajectories, strict=True)
        for x in t.transitions
    ]
    return Credit(turns, np.ones(len(trajectories), dtype=bool))


def gradient(policy, learner, trajectories, sequences, stats, budget, chunk, lambdas):
    """Gradient of one optimizer batch, with the given split into micro-batches and chunks of the head."""
    policy.model.zero_grad()
    selected = np.arange(len(stats.entropies)) % 3 != 0
    world_model = WorldModelWeights(lambdas, selected, selected)
    tables = build_tables(sequences, stats, spread_credit(trajectories), world_model)
    weights = token_weights(world_model, sequences, policy.device)
    results = []
    for members in packing.plan_micro_batches([packing.input_length(t) for t in tables], budget):
        batch = packing.pack(sequences, tables, members, policy.device, weights)
        results.append((batch, backward(policy, batch, learner.settings, chunk)))
    return {n: p.grad.clone() for n, p in policy.model.named_parameters()}, results


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_any_split_into_micro_batches_gives_the_same_gradient(policy, layout):
    trajectories = episodes(layout=layout)
    learner = Learner(policy, None, config(layout))
    batch = learner.make_batch(trajectories)
    sequences, stats = batch.sequences, learner.compute_token_stats(batch)
    lambdas = np.linspace(0.2, 1.0, len(trajectories))
    whole, _ = gradient(policy, learner, trajectories, sequences, stats, 10**6, 10**6, lambdas)
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-4
    for budget, chunk in ((1, 7), (40, 10**6), (90, 3)):
        split, _ = gradient(policy, learner, trajectories, sequences, stats, budget, chunk, lambdas)
        for name, expected in whole.items():
            torch.testing.assert_close(split[name], expected, atol=2e-6, rtol=2e-4)


def test_without_lambda_the_update_is_that_of_reinforcement_learning_alone(policy):
    trajectories = episodes()
    learner = Learner(policy, None, config())
    batch = learner.make_batch(trajectories)
    sequences, stats = batch.sequences, learner.compute_token_stats(batch)
    zero, (first,) = gradient(
        policy, learner, trajectories, sequences, stats, 10**6, 10**6, np.zeros(len(trajectories))
    )
    bare = learner.make_batch(trajectories).sequences
    tables = [packing.action_rows(s) for s in bare]
    total = sum(len(t.positions) for t in tables)
    advantages = np.linspace(-1, 1, len(trajectories))
    for table, sequence in zip(tables, bare, strict=True):
        table.weights[:] = 1 / total
        table.old_logprobs[:] = np.concatenate([stats.old_logprobs[s.transition] for s in sequence.spans])
        table.advantages[:] = advantages[sequence.trajectory]
    policy.model.zero_grad()
    batch = packing.pack(bare, tables, first[0].members, policy.device)
    result = backward(policy, batch, learner.settings, 10**6)
    torch.testing.assert_close(first[1].losses, result.losses)
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(parameter.grad, zero[name], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_the_appended_observation_does_not_change_the_actions_logprobs(policy, layout):
    sequences = Learner(policy, None, config(layout)).make_batch(episodes(layout=layout)).sequences
    plain = [packing.action_rows(s) for s in sequences]
    both = [
        packing.join_rows(packing.action_rows(s), packing.observation_rows(s, [1.0] * len(s.spans))) for s in sequences
    ]
    for i, _ in enumerate(sequences):
        short, *_ = compute_token_stats(policy, packing.pack(sequences, plain, [i], policy.device), 1.0, 10**6)
        long, *_ = compute_token_stats(policy, packing.pack(sequences, both, [i], policy.device), 1.0, 10**6)
        torch.testing.assert_close(long[: len(short)], short, atol=1e-6, rtol=1e-6)
        assert packing.input_length(both[i]) > packing.input_length(plain[i])


def test_token_statistics_match_a_plain_forward_pass(policy):
    learner = Learner(policy, None, config())
    batch = learner.make_batch(episodes())
    sequences, stats = batch.sequences, learner.compute_token_stats(batch)
    model = copy.deepcopy(policy.model).double()
    model.set_attn_implementation("eager")
    number = 0
    for sequence in sequences:
        with torch.no_grad():
            rows = torch.log_softmax(model(torch.tensor([sequence.ids])).logits[0], -1)
        for span in sequence.spans:
            at = torch.arange(*span.action)
            expected = rows[at - 1, torch.tensor(sequence.ids)[at]].tolist()
            assert stats.old_logprobs[number].tolist() == pytest.approx(expected, abs=1e-5)
            entropy = -(rows[at - 1].exp() * rows[at - 1]).sum(-1).mean().item()
            assert stats.entropies[number] == pytest.approx(entropy, abs=1e-5)
            number += 1


def test_denominators_are_those_of_the_whole_optimizer_batch(policy):
    trajectories = episodes()
    sequences = Learner(policy, None, config()).make_batch(trajectories).sequences
    sizes = [len(x.action_ids) for t in trajectories for x in t.transitions]
    stats = TokenStats([np.zeros(n) for n in sizes], None, None, [])
    selected = np.arange(len(sizes)) % 2 == 0
    world_model = WorldModelWeights(np.ones(6), selected, selected)
    tables = build_tables(sequences, stats, spread_credit(trajectories), world_model)
    weights = token_weights(world_model, sequences, policy.device)
    rows = packing.pack(sequences, tables, range(len(tables)), policy.device, weights).rows
    totals = [float(rows.weights[rows.kinds == kind].double().sum()) for kind in (POLICY, WORLD_MODEL)]
    assert totals == [pytest.approx(1.0), pytest.approx(1.0)]


def test_the_policy_loss_pulls_the_right_way(policy):
    """A step on positive advantages makes the sampled actions likelier, on negative ones less likely."""
    for sign in (1.0, -1.0):
        fresh = Policy(copy.deepcopy(policy.model), None)
        learner = Learner(fresh, None, config())
        batch = learner.make_batch(episodes())
        sequences, old = batch.sequences, learner.compute_token_stats(batch).old_logprobs
        before = np.concatenate(old)
        tables = [packing.action_rows(s) for s in sequences]
        for table, sequence in zip(tables, sequences, strict=True):
            table.weights[:], table.advantages[:] = 1e-2, sign
            table.old_logprobs[:] = np.concatenate([old[s.transition] for s in sequence.spans])
        backward(fresh, packing.pack(sequences, tables, range(len(tables)), fresh.device), LossSettings(), 10**6)
        with torch.no_grad():
            for parameter in fresh.model.parameters():
                parameter -= 0.05 * parameter.grad
        after = np.concatenate(learner.compute_token_stats(batch).old_logprobs)
        assert sign * (after - before).mean() > 0
