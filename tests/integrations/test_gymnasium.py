"""The environments in gymnasium: its own checker, and 100 episodes by its `make` and `step`."""

import warnings

import pytest
from text_episodes import ENVS, NUM_EPISODES, SETTINGS, play, transcript

from paw_fast import envs
from paw_fast.errors import UserError

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402

import paw_fast.integrations.gymnasium as integration  # noqa: E402


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)


def replay(env, number, turns):
    """The same episode through gymnasium, as `transcript` tells it."""
    text, info = env.reset(options={"task": number})
    rows = [("", text, info["admissible_commands"], 0.0, False, False, False)]
    for command, _ in turns:
        text, reward, terminated, truncated, info = env.step(command)
        rows.append((command, text, info["admissible_commands"], reward, info["is_success"], terminated, truncated))
    return rows, info


@pytest.mark.parametrize("name", ENVS)
def test_a_hundred_episodes_have_the_text_of_envs_make(name):
    own = envs.make(name, **SETTINGS[name])
    env = gymnasium.make(integration.ids()[name], disable_env_checker=False, **SETTINGS[name])
    won = 0
    for number in range(NUM_EPISODES):
        task, first, turns = play(own, name, number)
        rows, info = replay(env, number, turns)
        assert rows == transcript(first, turns)
        assert (info["task"], info["task_id"]) == (first.task, task.task_id)
        before = [first, *(result.observation for _, result in turns)][-2]
        assert info["admissible"] == turns[-1][1].was_admissible(turns[-1][0], before)
        won += info["is_success"]
    assert 30 < won < NUM_EPISODES
    env.close()
    own.close()


@pytest.mark.parametrize("name", ENVS)
def test_gymnasium_checks_the_environment(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(integration.ids()[name], render_mode="ansi", **SETTINGS[name]).unwrapped)


def test_a_seed_draws_a_task_and_environments_share_their_games():
    one, other = (gymnasium.make("paw_fast/ALFWorld-v0", **SETTINGS["alfworld"]) for _ in range(2))
    drawn = [one.reset(seed=seed)[1]["task_id"] for seed in range(8)]
    assert drawn == [other.reset(seed=seed)[1]["task_id"] for seed in range(8)]
    assert len(set(drawn)) > 4
    assert one.unwrapped._env._games is other.unwrapped._env._games
    text = one.reset(options={"task": drawn[3]})[0]
    other.step("inventory")
    other.step("look")
    assert one.step("look")[0] != text
    assert one.reset(options={"task": drawn[3]})[0] == text


def test_vector_environments():
    env = gymnasium.make_vec("paw_fast/ALFWorld-v0", num_envs=2, vectorization_mode="sync", **SETTINGS["alfworld"])
    texts, _ = env.reset(seed=0)
    assert len(texts) == 2
    assert all("Your task is to" in text for text in texts)
    texts, rewards, *_ = env.step(["look", "inventory"])
    assert list(rewards) == [0.0, 0.0]
    assert texts[1].startswith("You are not carrying")
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"task": 100}, "task 100: the split train has tasks 0 to 99"), ({"task": "x"}, "no task of this id"),
     ({"task": 1.5}, "expected its number")],
)  # fmt: skip
def test_unknown_tasks_are_refused(options, message):
    env = gymnasium.make("paw_fast/ALFWorld-v0", **SETTINGS["alfworld"])
    with pytest.raises(UserError, match=message):
        env.reset(options=options)


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="alfworld has no setting 'sise'"):
        gymnasium.make("paw_fast/ALFWorld-v0", sise="mini")
    with pytest.raises(UserError, match="render_mode is 'human'"):
        integration.PawFastEnv("alfworld", render_mode="human")
