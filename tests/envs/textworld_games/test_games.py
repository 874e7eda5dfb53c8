"""Tests `--env textworld:FILE` with games that the real package makes."""

import importlib.util
import shutil

import pytest

from paw_fast import envs
from paw_fast.cli import main
from paw_fast.config.build import make_config
from paw_fast.envs.textworld_games.games import split_games
from paw_fast.errors import UserError
from paw_fast.rollout.requirements import check_parts
from paw_fast.runs.metrics import read_metrics

textworld = pytest.importorskip("textworld", reason="textworld is not installed: pip install '.[textworld]'")


@pytest.fixture(scope="session")
def games(tmp_path_factory):
    """A folder with a compiled game and its description, as `tw-make` leaves them."""
    folder = tmp_path_factory.mktemp("games")
    options = textworld.GameOptions()
    options.path, options.seeds = str(folder / "game.z8"), 1
    options.nb_rooms, options.nb_objects, options.quest_length = 2, 4, 3
    textworld.make(options)
    return folder


def make(path, **settings):
    return envs.make(f"textworld:{path}", **{"time_limit_s": None, **settings})


def solve(env, task):
    expert = envs.make_expert(env.name)
    observation = env.reset(task)
    expert.reset(observation)
    results = [env.step(expert.act(observation))]
    while not results[-1].done:
        results.append(env.step(expert.act(results[-1].observation)))
    return results


@pytest.mark.filterwarnings("ignore:.*not fully supported")  # what the package says of its own games
def test_a_game_is_what_the_package_plays(games):
    env = make(games / "game.z8")
    (task,) = env.tasks("train")
    first = env.reset(task)
    infos = textworld.EnvInfos(description=True, inventory=True, objective=True, admissible_commands=True)
    reference = textworld.start(str(games / "game.z8"), infos)
    state = reference.reset()
    assert first.text == state.description.strip()
    assert first.task == state.objective
    assert first.admissible == tuple(state.admissible_commands)
    for command in ("look", first.admissible[0], "fly to the moon", "inventory"):
        result, (state, _, _) = env.step(command), reference.step(command)
        assert result.observation.text == state.feedback.strip()
        assert result.observation.admissible == tuple(state.admissible_commands)
        assert result.observation.state_text == f"{state.description.strip()}\n{state.inventory.strip()}"
    reference.close()
    results = solve(env, task)
    assert (results[-1].won, results[-1].reward, results[-1].truncated) == (True, 1.0, False)
    assert sum(result.score for result in results) == pytest.approx(1.0)
    assert solve(env.spawn(), task) == results == solve(env, task)
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step("look")
    env.close()


def test_limits_and_the_other_reward(games):
    env = make(games, max_steps=2, reward="score")
    env.reset(env.tasks("unseen")[0])
    assert [(r.done, r.truncated) for r in (env.step("look"), env.step("look"))] == [(False, False), (True, True)]
    env.close()
    env = make(games, reward="score")
    assert sum(r.reward for r in solve(env, env.tasks("train")[0])) == pytest.approx(1.0)
    env.close()


def test_a_description_is_compiled_once(games, tmp_path):
    shutil.copy(games / "game.json", tmp_path / "alone.json")
    env = make(tmp_path / "alone.json", cache_dir=tmp_path / "cache")
    compiled = make(games / "game.z8")
    assert env.reset(env.tasks("train")[0]).text == compiled.reset(compiled.tasks("train")[0]).text
    (file,) = (tmp_path / "cache").rglob("game.z8")
    made = file.stat().st_mtime_ns
    again = env.spawn()
    again.reset(env.tasks("train")[0])
    assert file.stat().st_mtime_ns == made
    for one in (env, again, compiled):
        one.close()


def test_splits(tmp_path):
    names = [tmp_path / f"{number}.z8" for number in range(7)]
    assert split_games(names, tmp_path, "train", "x") == ("train", names[:5])
    assert split_games(names, tmp_path, "eval", "x") == ("unseen", names[5:])
    assert split_games(names[:1], names[0], "unseen", "x") == ("unseen", names[:1])
    folders = [tmp_path / "train" / "a.z8", tmp_path / "train" / "b.z8", tmp_path / "valid" / "c.z8"]
    assert split_games(folders, tmp_path, "train", "x")[1] == folders[:2]
    assert split_games(folders, tmp_path, "unseen", "x")[1] == folders[2:]
    with pytest.raises(UserError, match="no split 'test'"):
        split_games(names, tmp_path, "test", "x")


def test_what_cannot_be_played_is_told(games, tmp_path, monkeypatch):
    for name, message in (
        ("game.ulx", "Glulx games are not supported"), ("game.tw-pddl", "--env alfworld"),
        ("notes.txt", "expected .z8"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=message):
            make(tmp_path / name)
    with pytest.raises(UserError, match="there is no file or folder"):
        make(tmp_path / "missing.z8")
    with pytest.raises(UserError, match="holds no games"):
        make(tmp_path)
    with pytest.raises(UserError, match="gives no file"):
        envs.find("textworld:")
    (tmp_path / "broken.json").write_text("{}")
    env = make(tmp_path / "broken.json", cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="cannot be compiled as a game of TextWorld"):
        env.reset(env.tasks("train")[0])
    shutil.copy(games / "game.z8", tmp_path / "unknown.z8")
    env = make(tmp_path / "unknown.z8")
    with pytest.raises(UserError, match=r"Jericho does not know unknown\.z8, .*needs its \.json beside"):
        env.reset(env.tasks("train")[0])
    env.close()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *r: None if name == "jericho" else find(name, *r))
    with pytest.raises(UserError, match=r"game\.z8 needs Jericho, its interpreter: pip install jericho"):
        make(games / "game.z8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *r: None if name == "textworld" else find(name, *r))
    config = make_config("qwen2.5-1.5b", env=f"textworld:{games}", model="x")
    with pytest.raises(UserError, match=r"needs TextWorld: .*\[textworld\]"):
        check_parts(config)


@pytest.mark.slow
def test_a_run_in_processes_of_its_own(games, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(games)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = [
        "--eval-split", "train", "--steps", "1", "--eval-every", "1",
        "--eval-tasks", "1", "--rollout.groups", "1", "--rollout.group-size", "2",
        "--rollout.slots", "2", "--algo.minibatches", "1", "--warm-start.episodes", "1", "--warm-start.epochs", "1",
        "--warm-start.vocab-size", "300", "--warm-start.layers", "1", "--env.max-steps", "3", "--env.processes", "1",
    ]  # fmt: skip
    run = str(tmp_path / "run")
    assert main.run(["train", "--env", "textworld:game.z8", "--preset", "tiny", *options, "--run-dir", run]) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1]
    assert f"textworld:{games}/game.z8" in (tmp_path / "run" / "config.toml").read_text()
