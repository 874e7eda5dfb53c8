"""Tests ScienceWorld's tasks, episodes, expert, a dying JVM and commands of the program, with the real package."""

import importlib.util
import json
import os
import random
import signal

import pytest

from paw_fast import envs
from paw_fast.cli import main
from paw_fast.envs.scienceworld.expert import GoldExpert
from paw_fast.envs.scienceworld.variations import variations_of
from paw_fast.errors import UserError
from paw_fast.runs.metrics import read_metrics
from paw_fast.types import Task

KIND = "find-non-living-thing"
WALK = ["look around", "open door to hallway", "go to hallway", "inventory", "fly to the moon", "open door to kitchen",
        "go to kitchen", "open cupboard", "look in cupboard", "pick up apple", "wait1"]  # fmt: skip


def task_of(kind, variation):
    return Task(f"{kind}/{variation}", "scienceworld", info={"task": kind, "variation": variation})


def words(text):
    """What a text says, whatever the order: the package itself lists the contents of a room in random order."""
    return sorted(word for line in text.split("\n") for word in line.replace(",", " ").replace(".", " ").split())


def test_the_package_itself_says_the_same(plain_env, reference):
    for kind, variation in (("boil", 3), (KIND, 0)):
        first = plain_env.reset(task_of(kind, variation))
        reference.load(kind, variation, "")
        # The parts of the package's reset and step without the list of valid actions, which takes a second.
        reference.server.reset()
        assert words(first.text) == words(reference.server.step("look around"))
        assert first.task in reference.taskdescription()
        assert first.task.startswith("Your task is to ")
        score = 0.0
        for command in WALK:
            result = plain_env.step(command)
            assert words(result.observation.text) == words(reference.server.step(command))
            score += result.score
            assert score == pytest.approx(max(0.0, reference.server.getScore()))
            assert result.done == reference.server.getCompleted()
            look, inventory = reference.look(), reference.inventory()
            assert words(result.observation.state_text) == words(f"{look}\n{inventory}")
            if command in ("look around", "inventory", "wait1", "fly to the moon"):
                assert result.admissible == (command != "fly to the moon")


def test_splits_are_those_of_the_package(plain_env, reference):
    assert set(plain_env._shared.totals) == set(reference.get_task_names())
    assert plain_env._shared.totals == {name: reference.get_max_variations(name) for name in plain_env._shared.totals}
    for kind in ("boil", "inclined-plane-friction-named-surfaces", "identify-life-stages-2"):
        reference.load(kind, 0, "")
        total = plain_env._shared.totals[kind]
        assert list(variations_of("train", total)) == reference.get_variations_train()
        assert list(variations_of("dev", total)) == reference.get_variations_dev()
        assert list(variations_of("test", total)) == reference.get_variations_test()
    every = {split: plain_env.tasks(split) for split in ("train", "dev", "test")}
    assert sum(map(len, every.values())) == sum(plain_env._shared.totals.values())
    assert len({task.task_id for tasks in every.values() for task in tasks}) == sum(map(len, every.values()))
    assert plain_env.tasks("unseen") == every["dev"]
    assert len({task.task_type for task in every["train"][:30]}) == 30


def test_the_same_task_is_the_same_episode(plain_env):
    """In other simulators of the same JVM, at the same time, and after other episodes."""
    rng = random.Random(0)
    other = plain_env.spawn()
    for kind, variation in (("chemistry-mix-paint-secondary-color", 4), ("grow-plant", 1)):
        task = task_of(kind, variation)
        commands = [rng.choice([*WALK, "go to art studio", "open door to art studio"]) for _ in range(12)]
        seen = []
        for env in (plain_env, other, plain_env):
            seen.append([env.reset(task), *(env.step(command) for command in commands)])
        assert seen[0] == seen[1] == seen[2]
        one, two = [plain_env.reset(task)], [other.reset(task)]
        for command in commands:
            two.append(other.step(command))
            one.append(plain_env.step(command))
        assert one == two == seen[0]


@pytest.mark.parametrize(("kind", "variation"), [(KIND, 2), ("power-component", 3)])
def test_the_expert_solves_tasks(plain_env, kind, variation):
    expert = GoldExpert(plain_env._config)
    observation = plain_env.reset(task_of(kind, variation))
    expert.reset(observation)
    rewards, result = [], None
    while result is None or not result.done:
        result = plain_env.step(expert.act(observation))
        observation = result.observation
        rewards.append(result.reward)
    assert result.won
    assert sum(rewards) == pytest.approx(1.0)
    assert min(rewards) >= 0
    expert._jvm.stop()


def test_a_failed_task_and_the_other_reward(plain_env):
    """To focus on a wrong thing fails a task; the package's score is then -100."""
    task = task_of("boil", 0)
    first = plain_env.reset(task)
    assert "focus" in first.task
    result = plain_env.step("focus on agent")
    assert (result.done, result.won, result.truncated) == (True, False, False)
    with pytest.raises(RuntimeError, match="call reset first"):
        plain_env.step("look around")
    strict = envs.make("scienceworld", time_limit_s=None, reward="success", max_steps=2, list_actions=True)
    assert "look around" in strict.reset(task).admissible
    moves = [strict.step(command) for command in ("look around", "wait1")]
    assert [move.reward for move in moves] == [0.0, 0.0]
    assert moves[-1].truncated
    assert "reset task" not in moves[-1].observation.admissible
    strict._jvm.stop()


def test_a_jvm_that_dies_is_restarted():
    env = envs.make("scienceworld", time_limit_s=None)
    other, task = env.spawn(), task_of(KIND, 0)
    first = env.reset(task)
    other.reset(task)
    os.kill(env._jvm.pid, signal.SIGKILL)
    with pytest.raises(envs.EpisodeLost, match=r"its JVM ended \(exit status -9\)") as own:
        env.step("look around")
    with pytest.raises(envs.EpisodeLost, match="because of another episode") as bystander:
        other.step("look around")
    assert (own.value.caused, bystander.value.caused) == (True, False)
    assert env.reset(task) == other.reset(task) == first
    assert env.step("look around").observation == other.step("look around").observation
    env._jvm.stop()


@pytest.mark.slow
def test_a_jvm_that_hangs_is_ended_with_its_process():
    env = envs.make("scienceworld", task_names=[KIND], processes=1, time_limit_s=20.0)
    first = env.reset(env.tasks("train")[0])
    group = env._host._process.pid
    for name in os.listdir("/proc"):
        if name.isdigit() and os.path.exists(f"/proc/{name}/exe") and os.getpgid(int(name)) == group:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if b"scienceworld.jar" in file.read():
                    jvm = int(name)
    os.kill(jvm, signal.SIGSTOP)
    env._host._limit_s = 1.0
    with pytest.raises(envs.EpisodeLost, match="did not respond within 1 s"):
        env.step("look around")
    assert not os.path.exists(f"/proc/{jvm}/exe")
    env._host._limit_s = 60.0
    assert env.reset(env.tasks("train")[0]) == first
    env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task_names": ["boill"]}, r"--env\.task-names boill: .*did you mean boil"),
        ({"simplifications": ["openDors"]}, r"--env\.simplifications openDors: .*did you mean openDoors"),
        (
            {"task_names": ["power-component"], "simplifications": ["noElectricalAction"]},
            "noElectricalAction makes power-component impossible",
        ),
    ],
)
def test_what_does_not_exist_is_refused(plain_env, settings, message, monkeypatch):
    monkeypatch.setattr("paw_fast.envs.scienceworld.env.Jvm", lambda memory_mb: plain_env._jvm)
    with pytest.raises(UserError, match=message):
        envs.make("scienceworld", time_limit_s=None, **settings)


def test_refusals(plain_env, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="no split 'seen'"):
        plain_env.tasks("seen")
    with pytest.raises(UserError, match="is none of scienceworld"):
        plain_env.reset(Task("x"))
    with pytest.raises(UserError, match="boil has the variations 0 to 29, not 30"):
        plain_env.reset(task_of("boil", 30))
    find = importlib.util.find_spec
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UserError, match="needs Java 8 or newer"):
        main.run(["train", "--env", "scienceworld", "--preset", "tiny", "--run-dir", str(tmp_path / "run")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *r: None if name == "py4j" else find(name, *r))
    with pytest.raises(UserError, match=r"--env scienceworld needs py4j: .*\[scienceworld\]"):
        main.run(["train", "--env", "scienceworld", "--preset", "tiny", "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


SHORT = [
    "--steps", "1", "--eval-every", "1", "--eval-tasks", "2", "--rollout.groups", "1", "--rollout.group-size", "2",
    "--rollout.slots", "2", "--algo.minibatches", "1", "--warm-start.episodes", "3", "--warm-start.epochs", "1",
    "--warm-start.vocab-size", "400", "--warm-start.layers", "1", "--env.max-steps", "3", "--env.processes", "1",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_from_warm_start_to_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main.run(["train", "--env", "scienceworld", *SHORT, "--algo", "gigpo", "--run-dir", "run"]) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1]
    page = (tmp_path / "run" / "episodes" / "step_000001.txt").read_text()
    assert "This room is called the" in page
    assert f"{KIND}/" in page
    capsys.readouterr()
    assert main.run(["eval", "run", "--tasks", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["env"], result["num_tasks"]) == ("scienceworld", 2)
    assert set(result["by_task_type"]) == {KIND}
