"""Tests BabyAI's tasks, episodes, expert and commands of the program, with the real package."""

import importlib.util
import json

import pytest

from paw_fast import envs
from paw_fast.cli import main
from paw_fast.envs.babyai import levels
from paw_fast.errors import UserError
from paw_fast.runs.metrics import read_metrics
from paw_fast.types import Task


def play(env, task, act):
    """All that an episode shows."""
    observation = env.reset(task)
    shown, done = [(observation.task, observation.text, observation.admissible)], False
    while not done:
        result = env.step(act(observation))
        observation, done = result.observation, result.done
        shown.append((observation.text, observation.admissible, result.reward, done, result.truncated))
    return shown


def test_the_same_task_is_the_same_episode(capsys):
    commands = ["go forward", "turn left", "go forward", "pick up", "turn right", "go forward", "drop", "toggle"] * 3
    settings = {"levels": ["PutNextLocal", "UnlockLocal"], "max_steps": len(commands), "num_unseen": 4}
    one, other = envs.make("babyai", **settings), envs.make("babyai", **settings).spawn()
    for task in (*one.tasks("train")[:3], one.tasks("unseen")[1]):
        episodes = []
        for env in (one, other, one):
            left = iter(commands)
            episodes.append(play(env, task, lambda _, left=left: next(left)))
        assert episodes[0] == episodes[1] == episodes[2]
    assert episodes[0] != play(one, one.tasks("unseen")[3], lambda _: "go forward")
    assert capsys.readouterr().out == ""  # minigrid prints a line for each layout that it rejects


def test_the_package_itself_says_the_same():
    import gymnasium

    env = envs.make("babyai", levels=["GoToLocal"], num_unseen=3)
    for task in env.tasks("unseen"):
        observation = env.reset(task)
        reference = gymnasium.make("BabyAI-GoToLocal-v0")
        seen, _ = reference.reset(seed=task.info["seed"])
        assert seen["mission"] == observation.task
        for action, command in [(0, "turn left"), (2, "go forward"), (1, "turn right"), (2, "go forward")]:
            seen, reward, ended, _, _ = reference.step(action)
            result = env.step(command)
            assert (seen["image"] == env.level_env.gen_obs()["image"]).all()
            assert (result.done, result.won) == (ended, reward > 0)
            if ended:
                break


def test_layouts_of_unseen_are_held_out():
    """A room of 2 x 2 cells has few layouts: many training seeds give one that is held out."""
    env = envs.make("babyai", levels=["GoToObjS4"], num_unseen=40, num_train=150)
    held_out = set()
    for task in env.tasks("unseen"):
        env.reset(task)
        held_out.add(levels.layout_of(env.level_env))
    redrawn = 0
    for task in env.tasks("train"):
        observation = env.reset(task)
        redrawn += observation.notes["seed"] != task.info["seed"]
        assert levels.layout_of(env.level_env) not in held_out
    assert redrawn > 0
    assert env.disjoint_splits
    ids = [task.task_id for split in ("train", "unseen") for task in env.tasks(split)]
    assert len(set(ids)) == 190
    too_many = envs.make("babyai", levels=["GoToObjS4"], num_unseen=20000)
    too_many._missions._held_out = Everything()
    with pytest.raises(UserError, match=r"--env\.num-unseen is 20000"):
        too_many.reset(too_many.tasks("train")[0])


class Everything(frozenset):
    def __contains__(self, one):
        return True


def test_episodes_end_at_the_limit_or_with_the_mission():
    env = envs.make("babyai", levels=["GoToRedBallNoDists"], max_steps=3, num_unseen=3)
    shown = play(env, env.tasks("train")[0], lambda _: "turn left")
    assert shown[-1][2:] == (0.0, True, True)
    assert len(shown) == 4
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step("turn left")


def test_a_strict_level_fails_at_the_wrong_object():
    env = envs.make("babyai", levels=["PickupDistDebug"], max_steps=300, num_unseen=1)
    expert, ends = envs.make_expert("babyai"), set()
    for task in env.tasks("train")[:40]:
        observation = env.reset(task)
        expert.reset(observation)
        result = None
        while result is None or not result.done:
            able = "pick up" in observation.admissible
            result = env.step("pick up" if able else expert.act(observation))
            observation = result.observation
            expert._num_seen = len(observation.notes["commands"]) if able else expert._num_seen
        ends.add((result.won, result.truncated))
        if {(True, False), (False, False)} <= ends:
            break
    assert {(True, False), (False, False)} <= ends


@pytest.mark.parametrize("level", ["GoToRedBallNoDists", "GoToLocal", "PickupLoc", "PutNextLocal"])
def test_the_expert_solves_the_simple_levels(level):
    env, expert = envs.make("babyai", levels=[level], num_unseen=1), envs.make_expert("babyai")
    won = 0
    for task in env.tasks("train")[:40]:
        observation = env.reset(task)
        expert.reset(observation)
        result = env.step(expert.act(observation))
        while not result.done:
            result = env.step(expert.act(result.observation))
        won += result.won
    assert won >= 38


def test_the_expert_goes_on_after_commands_of_others():
    env, expert = envs.make("babyai", levels=["PickupLoc"], num_unseen=1), envs.make_expert("babyai")
    won = 0
    for task in env.tasks("train")[:20]:
        observation = env.reset(task)
        expert.reset(observation)
        for number in range(64):
            command = ("turn left", "drop", "go forward")[number % 3] if number < 6 else expert.act(observation)
            result = env.step(command)
            observation = result.observation
            if result.done:
                break
        won += result.won
    assert won >= 19


@pytest.mark.parametrize(
    ("name", "message"),
    [("GoToLocl", "did you mean GoToLocal"), ("BabyAI-GoToLocal-v7", "no such level"), ("", "no such level")],
)
def test_levels_that_do_not_exist(name, message):
    with pytest.raises(UserError, match=message):
        envs.make("babyai", levels=[name])


def test_all_ways_to_name_a_level():
    assert {
        levels.level_id(f"{prefix}GoToLocal{version}") for prefix in ("", "BabyAI-") for version in ("", "-v0")
    } == {"BabyAI-GoToLocal-v0"}
    assert levels.level_id("GoToObjS6") == "BabyAI-GoToObjS6-v1"


def test_refusals(monkeypatch):
    with pytest.raises(UserError, match="at least one level"):
        envs.make("babyai", levels=[])
    env = envs.make("babyai", num_unseen=1)
    with pytest.raises(UserError, match="no split 'test'"):
        env.tasks("test")
    with pytest.raises(UserError, match="no level and seed"):
        env.reset(Task("x"))
    monkeypatch.setenv("BABYAI_DONE_ACTIONS", "1")
    with pytest.raises(UserError, match="BABYAI_DONE_ACTIONS is set"):
        envs.make("babyai")


def test_a_missing_package_is_told_before_a_run_folder_is_made(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *r: None if name == "minigrid" else find(name, *r))
    with pytest.raises(UserError, match=r"--env babyai needs minigrid: .*\[babyai\]"):
        main.run(["train", "--env", "babyai", "--preset", "tiny", "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


SHORT = [
    "--steps", "1", "--eval-every", "1", "--eval-tasks", "4", "--rollout.groups", "2", "--rollout.group-size", "2",
    "--rollout.slots", "4", "--algo.minibatches", "1", "--warm-start.episodes", "30",
    "--env.max-steps", "8", "--env.num-unseen", "20",
]  # fmt: skip


def test_a_run_from_warm_start_to_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main.run(["train", "--env", "babyai", *SHORT, "--algo", "gigpo", "--run-dir", "run"]) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1]
    page = (tmp_path / "run" / "episodes" / "step_000001.txt").read_text()
    assert "You see " in page
    assert "GoToLocal/train-" in page
    capsys.readouterr()
    assert main.run(["eval", "run", "--tasks", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["env"], result["num_tasks"]) == ("babyai", 3)
    assert set(result["by_task_type"]) == {"GoToLocal"}
