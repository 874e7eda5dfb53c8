"""Credit of every action token: each algorithm by hand on two small episodes, and verl-agent's ways."""

import dataclasses
import math

import numpy as np
import pytest

from paw_fast.config import AlgoConfig, CriticConfig
from paw_fast.scores import Scores
from paw_fast.types import Task, Trajectory, Transition
from paw_fast.update.credit import assign_credit, has_spread, transition_rewards


def turn(reward, valid=True, anchor="s", tokens=2):
    return Transition((1,), (2,) * tokens, (-1.0,) * tokens, (3,), (True,), "c", "o", anchor, reward, valid)


def episode(group, turns, won):
    total = sum(t.reward for t in turns)
    return Trajectory(Task("t"), group, tuple(turns), total, 10.0 * won, bool(won))


@pytest.fixture
def pair():
    """One group: a win in two turns whose first is invalid (returns 10 - 0.1), a loss in three turns."""
    won = episode(0, [turn(-0.1, valid=False, anchor="start"), turn(10.0, anchor="desk")], True)
    lost = episode(0, [turn(0.0, anchor="start"), turn(0.0, anchor="bed"), turn(0.0, anchor="start")], False)
    return [won, lost]


def scores(trajectories, values=None, old=None, ref=None):
    sizes = [len(x.action_ids) for t in trajectories for x in t.transitions]
    fill = lambda v: None if v is None else [np.full(n, v) for n in sizes]  # noqa: E731
    return Scores(fill(0.0 if old is None else old), fill(ref), fill(values), np.zeros(len(sizes)))


def credit(trajectories, given=None, critic=CriticConfig(), **settings):  # noqa: B008
    algo = dataclasses.replace(AlgoConfig(kl_coef=0.0), **settings)
    got = assign_credit(trajectories, given or scores(trajectories), algo, critic)
    return [a.tolist() for a in got.advantages], got


def test_grpo_gives_every_token_of_an_episode_the_same(pair):
    rows, _ = credit(pair, normalize_std=False)
    assert [len(r) for r in rows] == [2] * 5
    assert rows == [pytest.approx([4.95, 4.95])] * 2 + [pytest.approx([-4.95, -4.95])] * 3
    normalised, _ = credit(pair)
    assert normalised[0] == pytest.approx([1 / math.sqrt(2)] * 2, rel=1e-5)


def test_rloo(pair):
    rows, _ = credit(pair, name="rloo")
    assert [r[0] for r in rows] == pytest.approx([9.9, 9.9, -9.9, -9.9, -9.9])


def test_gigpo_adds_what_the_step_was_worth_among_equal_states(pair):
    rows, _ = credit(pair, name="gigpo", normalize_std=False, step_normalize_std=False, gamma=0.5, step_weight=2.0)
    # Returns to go: -0.1 + 0.5 * 10 = 4.9 at "start", 10 at "desk"; zeros in the other episode.
    # Anchor group "start" holds 4.9, 0 and 0: mean 4.9 / 3.
    mean = 4.9 / 3
    expected = [4.95 + 2 * (4.9 - mean), 4.95, -4.95 - 2 * mean, -4.95, -4.95 - 2 * mean]
    assert [r[0] for r in rows] == pytest.approx(expected)


def test_ppo_runs_gae_over_the_tokens_of_the_trajectory(pair):
    critic = CriticConfig(gamma=1.0, lam=1.0, whiten=False)
    rows, got = credit(pair, scores(pair, values=2.0), critic, name="ppo")
    # With lambda 1 the advantage is the rest of the return minus the value.
    assert rows[0] == pytest.approx([9.9 - 2, 9.9 - 2])
    assert rows[1] == pytest.approx([8.0, 8.0])
    assert rows[4] == pytest.approx([-2.0, -2.0])
    assert got.value_targets[1].tolist() == pytest.approx([10.0, 10.0])
    # With lambda 0: the next value minus its own; the reward stands on an action's last token.
    rows, _ = credit(pair, scores(pair, values=2.0), dataclasses.replace(critic, lam=0.0), name="ppo")
    assert rows[0] == pytest.approx([0.0, -0.1])
    assert rows[1] == pytest.approx([0.0, 8.0])


def test_verl_agents_gae_gives_every_transition_the_episodes_return(pair):
    critic = CriticConfig(gamma=1.0, lam=0.0, whiten=False, gae_over="transition")
    rows, got = credit(pair, scores(pair, values=2.0), critic, name="ppo")
    # Two tokens an action: 0 + 2 - 2, then the return 9.9 (or 0) minus 2; nothing passes between transitions.
    assert [x for r in rows for x in r] == pytest.approx([0.0, 7.9, 0.0, 7.9, *([0.0, -2.0] * 3)], abs=1e-6)
    assert got.value_targets[0].tolist() == pytest.approx([2.0, 9.9])
    rows, _ = credit(pair, scores(pair, values=2.0), critic, name="ppo", penalty_in="row")
    assert [rows[0][1], rows[1][1]] == pytest.approx([7.9, 8.0], abs=1e-6)


def test_verl_agents_statistics_count_rows_and_take_the_penalty_from_one(pair):
    rows, _ = credit(pair, statistics="step", penalty_in="row", normalize_std=False)
    # Row scores: 10 - 0.1, 10, 0, 0, 0.
    mean = 19.9 / 5
    assert [r[0] for r in rows] == pytest.approx([9.9 - mean, 10 - mean, -mean, -mean, -mean])
    values = np.array([9.9, 10, 0, 0, 0])
    rows, _ = credit(pair, statistics="step", penalty_in="row")
    assert [r[0] for r in rows] == pytest.approx((values - mean) / (values.std(ddof=1) + 1e-6), rel=1e-4)


def test_verl_agents_penalty_comes_after_discounting(pair):
    rows, _ = credit(
        pair,
        name="gigpo",
        statistics="step",
        penalty_in="row",
        normalize_std=False,
        step_normalize_std=False,
        gamma=0.5,
    )
    # Returns to go without penalties: 5, 10, 0, 0, 0; the penalty then comes off the first alone: 4.9.
    mean, anchor = 19.9 / 5, 4.9 / 3
    expected = [9.9 - mean + 4.9 - anchor, 10 - mean, -mean - anchor, -mean, -mean - anchor]
    assert [r[0] for r in rows] == pytest.approx(expected)


def test_the_kl_in_the_reward_is_paid_where_it_arose(pair):
    given = scores(pair, old=-1.0, ref=-1.5)
    algo = AlgoConfig(kl_coef=0.2, kl_in="reward")
    rewards, rest = transition_rewards(pair, given, algo)
    # Two tokens an action, 0.5 nats each, times 0.2.
    assert rewards.tolist() == pytest.approx([-0.1 - 0.2, 10 - 0.2, -0.2, -0.2, -0.2])
    assert rest.tolist() == [0.0] * 5
    assert transition_rewards(pair, given, dataclasses.replace(algo, kl_in="loss"))[0].tolist() == [-0.1, 10, 0, 0, 0]


def test_groups_without_spread_leave_the_policy_loss_under_dynamic_sampling(pair):
    same = [episode(1, [turn(0.0)], False), episode(1, [turn(-0.1, valid=False)], False)]
    assert has_spread([*pair, *same]).tolist() == [True, True, False, False]
    _, got = credit([*pair, *same], dynamic_sampling=True)
    assert got.in_policy.tolist() == [True, True, False, False]
    _, got = credit([*pair, *same])
    assert got.in_policy.all()
