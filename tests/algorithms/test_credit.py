"""Credit of every action token: each algorithm by hand on two small episodes, and verl-agent's ways."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from paw_fast.algorithms.base import algorithm_class, has_reward_variance, make_algorithm, token_kl
from paw_fast.config import AlgoConfig, CriticConfig, TrainConfig, algo_config, load_preset
from paw_fast.errors import UserError
from paw_fast.types import EpisodeId, RolloutBatch, Task, TokenStats, Trajectory, Transition


def turn(reward, valid=True, anchor="s", tokens=2):
    return Transition(
        (1,), (2,) * tokens, (-1.0,) * tokens, (3,), (True,), "c", "o", anchor, reward, valid, previous_text="same"
    )


def episode(group, turns, won):
    total = sum(t.reward for t in turns)
    return Trajectory(Task("t"), EpisodeId(0, group, 0), tuple(turns), total, 10.0 * won, bool(won))


@pytest.fixture
def pair():
    """One group: a win in two turns whose first is invalid (returns 10 - 0.1), a loss in three turns."""
    won = episode(0, [turn(-0.1, valid=False, anchor="start"), turn(10.0, anchor="desk")], True)
    lost = episode(0, [turn(0.0, anchor="start"), turn(0.0, anchor="bed"), turn(0.0, anchor="start")], False)
    return [won, lost]


def stats_of(trajectories, values=None, old=None, ref=None):
    sizes = [len(x.action_ids) for t in trajectories for x in t.transitions]
    fill = lambda v: None if v is None else [np.full(n, v) for n in sizes]  # noqa: E731
    return TokenStats(fill(0.0 if old is None else old), fill(ref), fill(values), [])


def credit(trajectories, given=None, critic=CriticConfig(), *, name="grpo", **settings):  # noqa: B008
    algo = dataclasses.replace(algo_config(name, AlgoConfig(kl_coef=0.0)), **settings)
    got = credit_of(TrainConfig(algo=algo, critic=critic), trajectories, given or stats_of(trajectories))
    return [a.tolist() for a in got.advantages], got


def credit_of(config, trajectories, stats):
    return make_algorithm(config).credit(RolloutBatch(tuple(trajectories), ()), stats)


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
    rows, got = credit(pair, stats_of(pair, values=2.0), critic, name="ppo")
    # With lambda 1 the advantage is the rest of the return minus the value.
    assert rows[0] == pytest.approx([9.9 - 2, 9.9 - 2])
    assert rows[1] == pytest.approx([8.0, 8.0])
    assert rows[4] == pytest.approx([-2.0, -2.0])
    assert got.value_targets[1].tolist() == pytest.approx([10.0, 10.0])
    # With lambda 0: the next value minus its own; the reward stands on an action's last token.
    rows, _ = credit(pair, stats_of(pair, values=2.0), dataclasses.replace(critic, lam=0.0), name="ppo")
    assert rows[0] == pytest.approx([0.0, -0.1])
    assert rows[1] == pytest.approx([0.0, 8.0])


def test_verl_agents_gae_gives_every_transition_the_episodes_return(pair):
    critic = CriticConfig(gamma=1.0, lam=0.0, whiten=False, gae_over="transition")
    rows, got = credit(pair, stats_of(pair, values=2.0), critic, name="ppo")
    # Two tokens an action: 0 + 2 - 2, then the return 9.9 (or 0) minus 2; nothing passes between transitions.
    assert [x for r in rows for x in r] == pytest.approx([0.0, 7.9, 0.0, 7.9, *([0.0, -2.0] * 3)], abs=1e-6)
    assert got.value_targets[0].tolist() == pytest.approx([2.0, 9.9])
    rows, _ = credit(pair, stats_of(pair, values=2.0), critic, name="ppo", penalty_in="row")
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


def kl_of(trajectories, ref=((-1.5, -1.0), (-1.0, -3.0), (0.0, -1.0), (-1.0, -1.0), (-2.0, -2.0))):
    """TokenStats with old log-probs of -1: old - ref of the five transitions' two tokens is
    0.5 0; 0 2; -1 0; 0 0; 1 1."""
    base = stats_of(trajectories, values=0.0, old=-1.0)
    return dataclasses.replace(base, ref_logprobs=[np.array(r) for r in ref])


def test_the_kl_in_the_reward_is_paid_by_each_token(pair):
    algo = AlgoConfig(kl_coef=0.2, kl_in="reward")
    paid = token_kl(kl_of(pair), algo)
    assert [k.tolist() for k in paid] == [pytest.approx(x) for x in ([0.1, 0], [0, 0.4], [-0.2, 0], [0, 0], [0.2, 0.2])]
    assert not np.concatenate(token_kl(kl_of(pair), dataclasses.replace(algo, kl_in="loss"))).any()
    assert not np.concatenate(token_kl(kl_of(pair), dataclasses.replace(algo, kl_coef=0.0))).any()


def test_ppo_takes_the_kl_from_each_tokens_reward(pair):
    """verl: token_level_rewards = token_level_scores - beta * kld; with lambda 1 and values 0 their suffix sums."""
    critic = CriticConfig(gamma=1.0, lam=1.0, whiten=False)
    rows, _ = credit(pair, kl_of(pair), critic, name="ppo", kl_coef=0.2, kl_in="reward")
    # Token rewards of the win: -0.1, -0.1 | 0, 10 - 0.4; of the loss: 0.2, 0 | 0, 0 | -0.2, -0.2.
    assert rows == [pytest.approx(x) for x in ([9.4, 9.5], [9.6, 9.6], [-0.2, -0.4], [-0.4, -0.4], [-0.4, -0.2])]
    rows, _ = credit(
        pair, kl_of(pair), dataclasses.replace(critic, gae_over="transition"), name="ppo", kl_coef=0.2, kl_in="reward"
    )
    # Every transition is given the episode's return 9.9 (or 0), and pays its own tokens' KL.
    expected = [[9.8, 9.9], [9.5, 9.5], [0.2, 0.0], [0.0, 0.0], [-0.4, -0.2]]
    assert rows == [pytest.approx(x, abs=1e-6) for x in expected]


def test_rows_pay_their_own_kl_with_statistics_over_rows(pair):
    plain = {"normalize_std": False, "kl_coef": 0.2, "kl_in": "reward"}
    rows, _ = credit(pair, kl_of(pair), statistics="step", **plain)
    # Row scores: the episode's return 9.9 (or 0) minus 0.1, 0.4, -0.2, 0, 0.4.
    values = np.array([9.8, 9.5, 0.2, 0.0, -0.4])
    assert [r[0] for r in rows] == pytest.approx(values - values.mean(), rel=1e-6)
    rows, _ = credit(pair, kl_of(pair), **plain)
    # Over episodes: returns 9.9 - 0.5 and -0.2, half their difference apart from the mean.
    assert [r[0] for r in rows] == pytest.approx([4.8, 4.8, -4.8, -4.8, -4.8])
    # GiGPO's returns-to-go are of the environment's rewards in verl-agent: its rows pay in the episode part alone.
    rows, _ = credit(pair, kl_of(pair), name="gigpo", statistics="step", step_normalize_std=False, gamma=0.5, **plain)
    anchor = 4.9 / 3
    steps = np.array([4.9 - anchor, 0.0, -anchor, 0.0, -anchor])
    assert [r[0] for r in rows] == pytest.approx(values - values.mean() + steps, rel=1e-6)


def test_an_episode_without_a_turn_moves_no_other_to_another_group(pair):
    empty = Trajectory(Task("t"), EpisodeId(0, 5, 0), (), 0.0, 0.0, False)
    other = [dataclasses.replace(t, episode_id=EpisodeId(0, 1, 0)) for t in pair]
    rows, _ = credit([*pair, empty, *other, empty], stats_of([*pair, *other]), normalize_std=False)
    assert [r[0] for r in rows] == pytest.approx([4.95, 4.95, -4.95, -4.95, -4.95] * 2)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("webshop-qwen2.5-1.5b", (8.75, -1.25)), ("alfworld-qwen2.5-1.5b", (8.75 / 12.5**0.5, -1.25 / 12.5**0.5))],
)
def test_gigpo_as_in_verl_agents_recipes(preset, expected):
    """One win in eight, an action each. verl-agent's `mean_norm` (WebShop) leaves the std out of the episode part too,
    `mean_std_norm` (ALFWorld) divides by the sample std, sqrt(12.5); both parts are equal where the state is."""
    algo = load_preset(f"{preset}-gigpo").algo
    assert (algo.name, algo.anchor) == ("gigpo", "observation")
    config = TrainConfig(algo=dataclasses.replace(algo, kl_coef=0.0, anchor="state"))
    alone = [episode(0, [turn(10.0 * (i == 0), anchor=f"s{i}")], i == 0) for i in range(8)]
    rows = credit_of(config, alone, stats_of(alone)).advantages
    assert [r[0] for r in rows] == pytest.approx([expected[0]] + [expected[1]] * 7, rel=1e-4)
    together = [episode(0, [turn(10.0 * (i == 0))], i == 0) for i in range(8)]
    rows = credit_of(config, together, stats_of(together)).advantages
    assert [r[0] for r in rows] == pytest.approx([2 * expected[0]] + [2 * expected[1]] * 7, rel=1e-4)
    by_text = dataclasses.replace(config, algo=dataclasses.replace(config.algo, anchor="observation"))
    assert np.allclose(credit_of(by_text, alone, stats_of(alone)).advantages, rows)  # their observations are equal


def test_groups_without_spread_leave_the_policy_loss_under_dynamic_sampling(pair):
    same = [episode(1, [turn(0.0)], False), episode(1, [turn(-0.1, valid=False)], False)]
    assert has_reward_variance([*pair, *same]).tolist() == [True, True, False, False]
    _, got = credit([*pair, *same], dynamic_sampling=True)
    assert got.policy_mask.tolist() == [True, True, False, False]
    _, got = credit([*pair, *same])
    assert got.policy_mask.all()


# ------------------------------------------------------------------------------------- settings and the registry


def test_each_algorithm_has_its_own_settings_and_no_others():
    shared = {f.name for f in dataclasses.fields(AlgoConfig)}
    own = {
        name: {f.name for f in dataclasses.fields(algorithm_class(name).config)} - shared
        for name in ("grpo", "rloo", "gigpo", "ppo")
    }
    assert own == {
        "grpo": {"statistics", "normalize_std"}, "rloo": {"statistics"}, "ppo": set(),
        "gigpo": {
            "statistics", "normalize_std", "gamma", "step_weight", "step_normalize_std", "similarity", "anchor",
        },
    }  # fmt: skip
    assert [name for name in own if algorithm_class(name).needs_critic] == ["ppo"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("grpo", {"algo": {"penalty_in": "row"}}, "add --algo.statistics step"),
        ("rloo", {"rollout": {"group_size": 1}}, "--rollout.group-size is 1, expected 2 or more with --algo rloo"),
        ("gigpo", {"env": {"name": "search"}}, "--env search has none that repeats: give --algo.similarity"),
        ("ppo", {"critic": {"backbone": "none"}}, "--algo ppo needs a critic"),
        ("ppo", {"algo": {"dynamic_sampling": True}}, "PPO compares none: leave it out"),
    ],
)
def test_settings_that_contradict_each_other(name, changes, message):
    config = TrainConfig(algo=algo_config(name))
    config.algo.check(config)
    parts = {table: dataclasses.replace(getattr(config, table), **settings) for table, settings in changes.items()}
    config = dataclasses.replace(config, **parts)
    with pytest.raises(UserError, match=message):
        config.algo.check(config)


def test_a_group_of_one_is_enough_for_ppo():
    config = TrainConfig(algo=algo_config("ppo"))
    config.algo.check(dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, group_size=1)))


def test_settings_load_without_torch():
    """So that `paw-fast train --help` is quick."""
    modules = ", ".join(f"paw_fast.algorithms.{name}" for name in ("grpo", "rloo", "gigpo", "ppo"))
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_is_no_algorithm_is_refused(tmp_path, monkeypatch):
    (tmp_path / "no_algorithm.py").write_text("class Thing:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--algo no_algorithm:Thing: it is .*expected a subclass of paw_fast"):
        algorithm_class("no_algorithm:Thing")
