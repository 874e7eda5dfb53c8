"""What the switches of an update do: critic, warm-up, aggregation, alternating and multi-step prediction."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from paw_fast import tiny
from paw_fast.config import load_preset
from paw_fast.policy import Policy
from paw_fast.trajectories import build_sequences
from paw_fast.types import Task, Trajectory, Transition
from paw_fast.update import Learner
from paw_fast.world_model import first_of_equals

VOCAB = 80


@pytest.fixture
def policy():
    return Policy(tiny.build_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, seed=2), None)


def config(layout="trajectory", critic=None, paw=None, **algo):
    base = load_preset("tiny")
    return dataclasses.replace(
        base, layout=layout, critic=dataclasses.replace(base.critic, **(critic or {})),
        paw=dataclasses.replace(base.paw, **(paw or {})),
        algo=dataclasses.replace(base.algo, minibatches=1, kl_coef=0.0, **algo),
        optim=dataclasses.replace(base.optim, schedule="constant", learning_rate=1e-3),
    )  # fmt: skip


def episodes(layout="trajectory", count=8, seed=0):
    """Four to a group; the reward can be told from the first token of the prompt."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        won = number % 2 == 0
        prompt, turns = (7 if won else 11, *(int(i) for i in rng.integers(20, VOCAB, 3))), []
        for turn in range(3):
            action = tuple(int(i) for i in rng.integers(20, VOCAB, 2))
            observed = tuple(int(i) for i in rng.integers(20, VOCAB, 4))
            reward = 10.0 * (won and turn == 2)
            turns.append(
                Transition(prompt, action, (-1.0, -1.0), observed, (True,) * 4, "c", "o", f"s{turn}", reward, True)
            )
            prompt = prompt + action + observed if layout == "trajectory" else (prompt[0], *observed)
        total = 10.0 * won
        out.append(Trajectory(Task("t"), number // 4, tuple(turns), total, total, won))
    return out


def weights(policy):
    return copy.deepcopy(policy.model.state_dict())


def moved(policy, before):
    return any(not torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())


def run(learner, layout="trajectory", horizon=1, steps=1):
    trajectories = episodes(layout)
    sequences = build_sequences(trajectories, layout, horizon)
    out = []
    for step in range(steps):
        out.append(learner.update(trajectories, sequences, learner.score(sequences), step))
    return out


@pytest.mark.parametrize("layout", ["trajectory", "window"])
@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_the_critic_learns_the_returns(policy, backbone, layout):
    c = config(layout, {"backbone": backbone, "learning_rate": 1e-2, "value_clip": None, "coef": 1.0}, name="ppo")
    metrics = run(Learner(policy, None, c), layout, steps=25)
    assert metrics[-1]["critic/loss"] < 0.3 * metrics[0]["critic/loss"]
    assert metrics[-1]["critic/explained_variance"] > 0.6


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_in_the_critics_warm_up_the_policy_stays(policy, backbone):
    before = weights(policy)
    learner = Learner(policy, None, config(critic={"backbone": backbone, "warmup_steps": 2}, name="ppo"))
    first, second, third = run(learner, steps=3)
    assert "critic/loss" in first
    assert first["policy/loss"] == second["policy/loss"] == 0.0
    assert learner.critic.head.weight.abs().max() > 0
    assert third["optim/grad_norm"] > 0
    fresh = Learner(policy2 := Policy(copy.deepcopy(policy.model), None), None, learner.config)
    policy2.model.load_state_dict(before)
    run(fresh, steps=2)
    assert not moved(policy2, before)
    assert moved(policy, before)


def test_values_are_the_same_in_both_layouts_of_the_critic(policy):
    """A shared critic scored in one pass with the policy, and one of its own with the same weights."""
    sequences = build_sequences(episodes(), "trajectory")
    own, shared = (Learner(policy, None, config(critic={"backbone": b}, name="ppo")) for b in ("own", "shared"))
    with torch.no_grad():
        own.critic.head.weight.normal_()
        shared.critic.head.weight.copy_(own.critic.head.weight)
    a, b = own.score(sequences).values, shared.score(sequences).values
    assert len(a) == 24
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_alternating_updates_leave_the_world_model_out_until_its_turn(policy):
    learner = Learner(policy, None, config(paw={"update": "alternate", "interval": 3, "balance": "fixed"}))
    rows = run(learner, steps=6)
    assert [("wm/next_observation_error" in r) for r in rows] == [False, False, True] * 2
    alone = config(paw={"update": "alternate", "interval": 2, "balance": "fixed"}, dynamic_sampling=True)
    # Groups without spread have no policy loss, so an update without the world model moves nothing.
    flat = [dataclasses.replace(t, success_return=0.0, episode_return=0.0) for t in episodes()]
    learner = Learner(policy, None, alone)
    sequences = build_sequences(flat, "trajectory")
    before = weights(policy)
    metrics = learner.update(flat, sequences, learner.score(sequences), 0)
    assert metrics["policy/group_spread_share"] == 0.0
    learner.update(flat, sequences, learner.score(sequences), 1)
    assert moved(policy, before)


def test_a_longer_horizon_predicts_the_observations_that_follow():
    trajectories = episodes("window", count=1)
    turns = trajectories[0].transitions
    one, two, three = (build_sequences(trajectories, "window", h) for h in (1, 2, 3))
    assert [len(q.spans[0].observation) for q in one] == [4, 4, 4]
    assert [len(q.spans[0].observation) for q in two] == [8, 8, 4]
    assert [len(q.spans[0].observation) for q in three] == [12, 8, 4]
    ids = three[0].ids
    assert ids == (
        turns[0].prompt_ids + turns[0].action_ids + turns[0].observation_ids + turns[1].action_ids
        + turns[1].observation_ids + turns[2].action_ids + turns[2].observation_ids
    )  # fmt: skip
    shown = [ids[p] for p in three[0].spans[0].observation]
    assert shown == [i for t in turns for i in t.observation_ids]
    assert three[0].spans[0].action == one[0].spans[0].action


def test_a_longer_horizon_leaves_the_policy_part_as_it_is(policy):
    losses = []
    for horizon in (1, 3):
        fresh = Policy(copy.deepcopy(policy.model), None)
        (metrics,) = run(Learner(fresh, None, config("window", normalize_std=True)), "window", horizon)
        losses.append(metrics["policy/loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_equal_transitions_are_predicted_once(policy):
    trajectories = episodes(count=4)
    doubled = [*trajectories, *(dataclasses.replace(t, group=7) for t in trajectories)]
    turns = [x for t in doubled for x in t.transitions]
    assert first_of_equals(turns).tolist() == [True] * 12 + [False] * 12
    changed = dataclasses.replace(turns[0], observation_ids=(20, 21, 22, 23))
    assert first_of_equals([turns[0], changed, turns[0]]).tolist() == [True, True, False]
    sequences = build_sequences(doubled, "trajectory")
    for deduplicate, share in ((False, 1.0), (True, 0.5)):
        learner = Learner(policy, None, config(paw={"deduplicate": deduplicate, "selection": "all"}))
        metrics = learner.update(doubled, sequences, learner.score(sequences), 0)
        assert metrics["wm/selected_share"] == pytest.approx(share)


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_minibatches_hold_every_sequence_once(policy, layout):
    learner = Learner(policy, None, config(layout, minibatch_size=5))
    parts = learner._minibatches(12, step=3, epoch=1)
    assert sorted(i for part in parts for i in part) == list(range(12))
    assert [len(p) for p in parts] == [4, 4, 4]
    assert learner._minibatches(3, 0, 0) == [[0, 1, 2]]
