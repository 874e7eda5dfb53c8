"""The protocol: episodes, batches, official games."""

import random
import subprocess
import sys

import pytest

from paw_fast import envs
from paw_fast.envs.alfworld import Planner, SearcherExpert
from paw_fast.envs.alfworld.games import read_task
from paw_fast.envs.alfworld.state import State
from paw_fast.envs.base import Env


def test_it_is_an_env(small_env):
    assert isinstance(small_env, Env)
    assert small_env.name == "alfworld"


def test_an_episode_that_is_won(small_env):
    env, task = small_env.spawn(), small_env.tasks("train")[0]
    first = env.reset(task)
    assert first.text.endswith(f"Your task is to: {first.task}.")
    assert first.state_text == "\n".join((first.text, *first.admissible))
    plan = Planner().plan(env.state)
    for i, command in enumerate(plan):
        step = env.step(command)
        last = i == len(plan) - 1
        assert (step.score, step.done, step.won) == (float(last), last, last)
        assert step.admissible
    with pytest.raises(RuntimeError, match="after the episode's end"):
        env.step("look")
    assert env.reset(task) == first


def test_an_episode_that_runs_out_of_steps(small_env):
    env = envs.make("alfworld", data=small_env.tasks("train")[0].path.parents[3], max_steps=3)
    env.reset(env.tasks("train")[0])
    steps = [env.step("no such command") for _ in range(3)]
    assert [step.done for step in steps] == [False, False, True]
    assert not any(step.score or step.admissible for step in steps)


def test_step_before_reset(small_env):
    with pytest.raises(RuntimeError, match="call reset first"):
        small_env.spawn().step("look")


def test_a_saved_state_goes_on(small_env):
    env, task = small_env.spawn(), small_env.tasks("train")[1]
    env.reset(task)
    plan = Planner().plan(env.state)
    for command in plan[:2]:
        env.step(command)
    stored = env.state.to_bytes()
    other = small_env.spawn()
    other.reset(task)
    other.restore(task, State.from_bytes(other.state.world, stored), num_steps=2)
    for command in plan[2:]:
        assert env.step(command) == other.step(command)


def test_a_state_goes_on_in_another_process(small_env, tmp_path):
    env, task = small_env.spawn(), small_env.tasks("train")[2]
    env.reset(task)
    plan = Planner().plan(env.state)
    env.step(plan[0])
    (tmp_path / "state").write_bytes(env.state.to_bytes())
    script = (
        "import sys; from pathlib import Path; from paw_fast.envs.alfworld import engine\n"
        "from paw_fast.envs.alfworld.games import load_world; from paw_fast.envs.alfworld.state import State\n"
        "state = State.from_bytes(load_world(Path(sys.argv[1])), Path(sys.argv[2]).read_bytes())\n"
        "print(hash(state)); print(state.to_bytes().decode())\n"
        "for command in sys.argv[3:]: print(engine.play(state, command)); print(*engine.commands(state), sep='|')\n"
    )
    command = [sys.executable, "-c", script, str(task.path), str(tmp_path / "state"), *plan[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    expected = [str(hash(env.state)), env.state.to_bytes().decode()]
    for step in map(env.step, plan[1:]):
        expected += [step.observation.text, "|".join(step.observation.admissible)]
    assert done.stdout.split("\n")[:-1] == expected
    assert env.state.won()


def test_a_state_of_another_game_is_refused(small_env):
    one, other = (small_env._games.world(task) for task in small_env.tasks("train")[:2])
    with pytest.raises(ValueError, match="of another game"):
        State.from_bytes(other, one.initial.to_bytes())


@pytest.mark.parametrize("num", [1, 3, 8])
def test_a_batch_gives_what_single_episodes_give(small_env, num):
    tasks = [small_env.tasks("train")[i % 24] for i in range(num)]
    batch, rng = envs.make_batch(small_env, num), random.Random(0)
    singles = [small_env.spawn() for _ in tasks]
    observations = batch.reset(tasks)
    assert observations == [env.reset(task) for env, task in zip(singles, tasks, strict=True)]
    for turn in range(12):
        commands = [None if (turn + i) % 5 == 0 else rng.choice(o.admissible) for i, o in enumerate(observations)]
        steps = batch.step(commands)
        for i, (command, step) in enumerate(zip(commands, steps, strict=True)):
            if command is None:
                assert step is None
            else:
                assert step == singles[i].step(command)
                observations[i] = step.observation
                if step.done:
                    return
    batch.close()


def test_finished_episodes_of_a_batch_are_not_played_on(small_env, monkeypatch):
    tasks, played = small_env.tasks("train")[:3], []
    plans = [Planner().plan(small_env._games.world(task).initial) for task in tasks]
    batch = envs.make_batch(small_env, 3)
    batch.reset(tasks)
    for turn in range(max(map(len, plans))):
        steps = batch.step([plan[turn] if turn < len(plan) else "look" for plan in plans])
        assert [step is None for step in steps] == [turn >= len(plan) for plan in plans]
    monkeypatch.setattr(type(small_env), "step", lambda env, command: played.append(command))
    assert batch.step(["look"] * 3) == [None] * 3
    assert played == []
    monkeypatch.undo()
    assert batch.reset(tasks[:1])
    assert [step is None for step in batch.step(["look"] * 3)] == [False, True, True]


def test_a_batch_of_fewer_tasks_and_of_too_many(small_env):
    batch = envs.make_batch(small_env, 2)
    tasks = small_env.tasks("train")
    assert len(batch) == 2
    assert len(batch.reset(tasks[:1])) == 1
    assert batch.step(["look"])[0] is not None
    with pytest.raises(ValueError, match="3 tasks for 2 slots"):
        batch.reset(tasks[:3])
    with pytest.raises(ValueError, match="3 commands for 2 slots"):
        batch.step(["look"] * 3)
    with pytest.raises(ValueError, match="at least 1"):
        envs.make_batch(small_env, 0)


def test_official_games_are_won_by_a_plan(official_games, small_env):
    env = small_env.spawn()
    for path in official_games:
        task = read_task(path)
        env.reset(task)
        for command in Planner().plan(env.state):
            step = env.step(command)
        assert step.done
        assert step.score == 1.0, path
    assert len(official_games) == 12


def test_official_games_are_won_by_the_searcher(official_games, small_env):
    env = small_env.spawn()
    for path in official_games:
        observation = env.reset(read_task(path))
        expert = SearcherExpert()
        expert.reset(observation)
        for _ in range(50):
            step = env.step(expert.act(observation))
            observation = step.observation
            if step.done:
                break
        assert step.score == 1.0, path


def test_the_official_folder_is_listed(test_data, official_games):
    env = envs.make("alfworld", data=test_data / "alfworld")
    assert len(env.tasks("train")) == len(env.tasks("unseen")) == 6
    assert {task.split for task in env.tasks("unseen")} == {"valid_unseen"}
