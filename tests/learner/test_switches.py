"""What the switches of an update do: critic, warm-up, aggregation, alternating and multi-step prediction."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from make_records import update

from paw_fast.algorithms.world_model import first_of_equals, select
from paw_fast.config import algo_config, load_preset
from paw_fast.learner import Learner
from paw_fast.learner.sequences import build_sequences
from paw_fast.learner.update_metrics import UpdateMetrics
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

VOCAB = 80


@pytest.fixture
def policy():
    return Policy(tiny.build_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, seed=2), None)


def config(layout="trajectory", critic=None, paw=None, name="grpo", **algo):
    base = load_preset("tiny")
    return dataclasses.replace(
        base, layout=layout, critic=dataclasses.replace(base.critic, **(critic or {})),
        paw=dataclasses.replace(base.paw, **(paw or {})),
        algo=dataclasses.replace(algo_config(name, base.algo), minibatches=1, kl_coef=0.0, **algo),
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
        out.append(Trajectory(Task("t"), EpisodeId(0, number // 4, number % 4), tuple(turns), total, total, won))
    return out


def weights(policy):
    return copy.deepcopy(policy.model.state_dict())


def moved(policy, before):
    return any(not torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())


def run(learner, steps=1):
    batch = learner.make_batch(episodes(learner.config.layout))
    return [update(learner, batch, step=step) for step in range(steps)]


@pytest.mark.parametrize("layout", ["trajectory", "window"])
@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_the_critic_learns_the_returns(policy, backbone, layout):
    c = config(layout, {"backbone": backbone, "learning_rate": 1e-2, "value_clip": None, "coef": 1.0}, name="ppo")
    metrics = run(Learner(policy, None, c), steps=25)
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


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_alternating_updates_wait_for_the_critics_warm_up_too(policy, backbone):
    paw = {"update": "alternate", "interval": 1, "balance": "fixed"}
    before = weights(policy)
    learner = Learner(policy, None, config(critic={"backbone": backbone, "warmup_steps": 2}, paw=paw, name="ppo"))
    rows = run(learner, steps=2)
    assert not moved(policy, before)
    assert all("wm/loss" not in r and r["policy/loss"] == 0.0 for r in rows)
    run(learner, steps=3)
    assert moved(policy, before)


def test_losses_are_means_over_the_steps_that_have_them(policy):
    """In a world-model step of an alternating update the policy's part is as without it, and so is the critic's."""
    losses = {}
    for paw in ({"enabled": False}, {"update": "alternate", "interval": 1, "balance": "fixed"}, {"balance": "fixed"}):
        fresh = Policy(copy.deepcopy(policy.model), None)
        c = config(critic={"backbone": "shared", "whiten": False}, paw={"alpha": 1.0, **paw}, name="ppo")
        (losses[paw.get("update", "joint") if paw.get("enabled", True) else "off"],) = run(Learner(fresh, None, c))
    off, alternate, joint = losses["off"], losses["alternate"], losses["joint"]
    for name in ("policy/loss", "critic/loss", "policy/clip_fraction"):
        assert alternate[name] == pytest.approx(off[name], abs=1e-7)
        assert joint[name] == pytest.approx(off[name], abs=1e-7)
    assert off["policy/loss"] != 0.0
    # CMAE of unlikely tokens is 1 - p: all but 1, whether or not a policy step went before.
    assert joint["wm/loss"] == pytest.approx(1.0, abs=0.1)
    assert alternate["wm/loss"] == pytest.approx(joint["wm/loss"], abs=0.05)
    rows = run(Learner(policy, None, config(paw={"update": "alternate", "interval": 2, "balance": "fixed"})), steps=2)
    assert ["wm/loss" in r for r in rows] == [False, True]


def without_observation(trajectories, layout):
    """The same with a last turn that nothing follows, as search's answers."""
    out = []
    for t in trajectories:
        last = t.transitions[-1]
        bare = dataclasses.replace(last, observation_ids=(), observation_mask=())
        out.append(dataclasses.replace(t, transitions=(*t.transitions[:-1], bare)))
    return out


@pytest.mark.parametrize("layout", ["trajectory", "window"])
@pytest.mark.parametrize("deduplicate", [False, True])
def test_selection_is_among_what_can_be_predicted(policy, layout, deduplicate):
    trajectories = without_observation(episodes(layout), layout)
    learner = Learner(policy, None, config(layout, paw={"alpha": 0.5, "deduplicate": deduplicate}))
    batch = learner.make_batch(trajectories)
    got = learner.compute_token_stats(batch)
    # The answers' entropies are the highest: counted among the rest they would fill the selection.
    entropies = torch.tensor([0.1, 0.2, 9.0] * 8) + torch.arange(24) * 1e-3
    got = dataclasses.replace(got, token_entropies=[entropies.repeat_interleave(2)])  # actions have two tokens
    weights = select(batch, got, learner.config, 0)
    assert weights.has_target.tolist() == [True, True, False] * 8
    assert weights.selected.tolist() == [False, True, False] * 8
    metrics = update(learner, batch, got)
    assert metrics["wm/selected_share"] == 0.5
    assert metrics["wm/target_share"] == pytest.approx(2 / 3)
    (one,) = without_observation(episodes("window", count=1), "window")
    horizon = build_sequences(
        [one], "window", 2
    )  # the second turn's sequence goes on with the answer: 4 tokens, then 4
    assert [len(q.spans[0].observation) for q in horizon] == [8, 4, 0]


def test_nothing_to_predict_at_all(policy):
    trajectories = [dataclasses.replace(t, transitions=without_observation([t], "")[0].transitions[-1:]) for t in
                    episodes("window")]  # fmt: skip
    learner = Learner(policy, None, config("window"))
    metrics = update(learner, learner.make_batch(trajectories))
    assert (metrics["wm/selected_share"], metrics["wm/target_share"], metrics["wm/loss"]) == (0.0, 0.0, 0.0)
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize(("warmup", "steps"), [(30, 100), (0, 10), (1, 3), (5, 5), (9, 4)])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_learning_rate_reaches_its_peak_and_never_jumps(policy, schedule, warmup, steps):
    optim = {"schedule": schedule, "warmup_steps": warmup, "learning_rate": 1.0}
    base = config()
    c = dataclasses.replace(base, steps=steps, optim=dataclasses.replace(base.optim, **optim))
    learner = Learner(policy, None, c)
    rates = []
    for _ in range(steps):
        rates.append(learner.scheduler.get_last_lr()[0])
        learner.optimizer.step()
        learner.scheduler.step()
    rise = [(step + 1) / (warmup + 1) for step in range(warmup)]
    fall = [1 - i / (steps - warmup) if schedule == "linear" else 1.0 for i in range(steps - warmup)]
    assert rates == pytest.approx((rise + fall)[:steps])
    if steps > warmup:
        assert max(rates) == rates[warmup] == 1.0


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_the_critics_rate_is_constant_and_its_warm_up_is_no_part_of_the_schedule(policy, backbone):
    base = config(critic={"backbone": backbone, "warmup_steps": 2, "learning_rate": 1e-2}, name="ppo")
    optim = dataclasses.replace(base.optim, schedule="linear", warmup_steps=1, learning_rate=1e-3)
    learner = Learner(policy, None, dataclasses.replace(base, steps=6, optim=optim))
    of_critic = (learner.critic.own_optimizers() or [learner.optimizer])[0]
    rates, critics = [], []
    for step in range(6):
        critics.append(of_critic.param_groups[-1]["lr"])
        rates.append(update(learner, learner.make_batch(episodes()), step=step)["optim/learning_rate"])
    # Two steps in which the policy stays, one of its own warm-up, and three from the peak down.
    assert rates == pytest.approx([0.0005, 0.0005, 0.0005, 0.001, 0.002 / 3, 0.001 / 3])
    assert critics == [1e-2] * 6


def test_values_are_the_same_in_both_layouts_of_the_critic(policy):
    """A shared critic in one pass with the policy, and one of its own with the same weights."""
    own, shared = (Learner(policy, None, config(critic={"backbone": b}, name="ppo")) for b in ("own", "shared"))
    with torch.no_grad():
        own.critic.head.weight.normal_()
        shared.critic.head.weight.copy_(own.critic.head.weight)
    batch = own.make_batch(episodes())
    a, b = own.compute_token_stats(batch).values, shared.compute_token_stats(batch).values
    assert len(a) == 24
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_the_explained_variance_of_near_constant_targets_is_no_noise():
    for spread, expected in ((1.0, 0.75), (1e-6, 0.0)):
        totals = UpdateMetrics()
        targets = spread * torch.tensor([1.0, -1.0])
        totals.add_values(0.5 * targets, targets, torch.zeros(2, dtype=torch.bool), 0.0)
        assert totals.metrics(False, False, True)["critic/explained_variance"] == pytest.approx(expected)


def test_alternating_updates_leave_the_world_model_out_until_its_turn(policy):
    learner = Learner(policy, None, config(paw={"update": "alternate", "interval": 3, "balance": "fixed"}))
    rows = run(learner, steps=6)
    assert [("wm/next_observation_error" in r) for r in rows] == [False, False, True] * 2
    alone = config(paw={"update": "alternate", "interval": 2, "balance": "fixed"}, dynamic_sampling=True)
    # Groups without spread have no policy loss, so an update without the world model moves nothing.
    flat = [dataclasses.replace(t, success_return=0.0, episode_return=0.0) for t in episodes()]
    learner = Learner(policy, None, alone)
    batch = learner.make_batch(flat)
    before = weights(policy)
    metrics = update(learner, batch)
    assert metrics["policy/group_spread_share"] == 0.0
    update(learner, batch, step=1)
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
        (metrics,) = run(Learner(fresh, None, config("window", paw={"horizon": horizon}, normalize_std=True)))
        losses.append(metrics["policy/loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_equal_transitions_are_predicted_once(policy):
    trajectories = episodes(count=4)
    again = [dataclasses.replace(t, episode_id=EpisodeId(0, 7, i)) for i, t in enumerate(trajectories)]
    doubled = [*trajectories, *again]
    turns = [x for t in doubled for x in t.transitions]
    assert first_of_equals(turns).tolist() == [True] * 12 + [False] * 12
    other_history = dataclasses.replace(turns[0], prompt_ids=(*[4] * 40, *turns[0].prompt_ids))
    same_end = dataclasses.replace(other_history, prompt_ids=(5, *other_history.prompt_ids[1:]))
    assert first_of_equals([turns[0], other_history, same_end, other_history]).tolist() == [True, True, True, False]
    changed = dataclasses.replace(turns[0], observation_ids=(20, 21, 22, 23))
    assert first_of_equals([turns[0], changed, turns[0]]).tolist() == [True, True, False]
    for deduplicate, share in ((False, 1.0), (True, 0.5)):
        learner = Learner(policy, None, config(paw={"deduplicate": deduplicate, "selection": "all"}))
        metrics = update(learner, learner.make_batch(doubled))
        assert metrics["wm/selected_share"] == pytest.approx(share)


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_minibatches_hold_every_sequence_once(policy, layout):
    learner = Learner(policy, None, config(layout, minibatch_size=5))
    parts = learner._minibatches(12, step=3, epoch=1)
    assert sorted(i for part in parts for i in part) == list(range(12))
    assert [len(p) for p in parts] == [4, 4, 4]
    assert learner._minibatches(3, 0, 0) == [[0, 1, 2]]
