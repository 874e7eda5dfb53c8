"""Tests environments in processes of their own: the same episodes, time limits, processes that end, mistakes."""

import os
import time

import pytest

from paw_fast import envs
from paw_fast.envs.isolated.env import IsolatedEnv
from paw_fast.errors import UserError

WALL = '''
import os, sys, time
from dataclasses import dataclass
from pathlib import Path
from paw_fast.envs import BaseEnv, EnvConfig, EpisodeLost, Observation, StepResult, Task
from paw_fast.errors import UserError

class Wall(BaseEnv):
    """Says what it was told. Some words make it fail."""

    count = 0  # of all episode slots

    @dataclass(frozen=True)
    class Config(EnvConfig):
        prefix: str = ""

    def __init__(self, config):
        self.config = config
        if config.prefix == "no":
            raise UserError("there is no such wall")
        if config.prefix == "bug":
            raise ZeroDivisionError("wall")

    def tasks(self, split):
        if split not in ("train", "unseen"):
            raise UserError(f"the wall has no split {split}")
        return [Task(f"{split}-{i}", info={"number": i}) for i in range(3)]

    def reset(self, task):
        print("noise")
        self.number = task.info["number"]
        return Observation(f"wall {self.number}", ("look",), "talk", notes={"pid": os.getpid()})

    def step(self, command):
        Wall.count += 1
        word, _, argument = command.partition(" ")
        if word == "sleep":
            time.sleep(float(argument))
        elif word == "hang":
            while True:
                pass
        elif word == "exit":
            print("the wall falls", file=sys.stderr)
            os._exit(7)
        elif word == "hang-once" and not Path(argument).exists():
            Path(argument).write_text("")
            time.sleep(1000)
        elif word == "raise":
            raise KeyError("brick")
        elif word == "lost":
            raise EpisodeLost("the mason is gone")
        elif word == "secret":
            return StepResult(Observation("x", notes={"f": lambda: 0}))
        return StepResult(Observation(f"{self.config.prefix}{self.number} {command}"), done=word == "end", won=True)

    def take_metrics(self):
        count, Wall.count = Wall.count, 0
        return {"retrieval/queries": float(count)} if count else {}
'''


@pytest.fixture(autouse=True)
def _wall(tmp_path, monkeypatch):
    (tmp_path / "wall_for_tests.py").write_text(WALL)
    monkeypatch.syspath_prepend(str(tmp_path))


def make(**settings):
    return envs.make("wall_for_tests:Wall", **{"time_limit_s": 30.0, "processes": 1, **settings})


def test_episodes_are_those_of_the_environment_itself():
    plain, env = envs.make("wall_for_tests:Wall", prefix="-"), make(prefix="-", processes=2)
    assert isinstance(env, IsolatedEnv)
    assert list(env.tasks("train")) == list(plain.tasks("train"))
    assert env.disjoint_splits is False
    slots = [env.spawn() for _ in range(3)]
    pids = set()
    for slot, task in zip(slots, env.tasks("unseen"), strict=True):
        slot.begin_reset(task)
    for slot, task in zip(slots, env.tasks("unseen"), strict=True):
        first, expected = slot.finish_reset(), plain.reset(task)
        assert (first.text, first.admissible, first.task) == (expected.text, expected.admissible, expected.task)
        pids.add(first.notes["pid"])
        assert env.accepts("look", first)
        assert not env.accepts("jump", first)
    assert len(pids) == 2
    assert os.getpid() not in pids
    for slot in slots:
        slot.begin_step("hello")
    assert [slot.finish_step().observation.text for slot in slots] == ["-0 hello", "-1 hello", "-2 hello"]
    assert slots[0].step("end").done
    with pytest.raises(RuntimeError, match="call reset first"):
        slots[0].step("more")
    for one in (env, *slots):
        one.close()
        one.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_alfworld_is_the_same_in_a_process():
    settings = {"num_train": 4, "num_unseen": 2}
    plain, env = envs.make("alfworld", **settings), envs.make("alfworld", **settings, time_limit_s=60.0, processes=1)
    task = plain.tasks("train")[1]
    assert task == env.tasks("train")[1]
    assert env.disjoint_splits
    seen, other = plain.reset(task), env.reset(task)
    for _ in range(4):
        assert seen == other
        command = seen.admissible[len(seen.admissible) // 2]
        one, two = plain.step(command), env.step(command)
        assert one == two
        seen, other = one.observation, two.observation
    env.close()


def test_a_hanging_step_is_ended_and_the_next_episode_is_played():
    env = make(time_limit_s=1.0)
    other = env.spawn()
    for one in (env, other):
        one.reset(env.tasks("train")[1])
    env.step("sleep 0.2")
    env.begin_step("hang")
    other.begin_step("hello")
    with pytest.raises(envs.EpisodeLost, match=r"train-1, step 'hang': its process did not respond within 1 s") as own:
        env.finish_step()
    with pytest.raises(envs.EpisodeLost) as bystander:
        other.finish_step()
    assert (own.value.caused, bystander.value.caused) == (True, False)
    assert env.reset(env.tasks("train")[2]).text == "wall 2"
    assert env.step("hello").observation.text == "2 hello"
    with pytest.raises(RuntimeError, match="call reset first"):
        other.step("hello")
    assert other.reset(env.tasks("train")[0]).text == "wall 0"


def test_an_episode_between_two_steps_learns_that_its_process_was_restarted():
    env = make()
    other = env.spawn()
    other.reset(env.tasks("train")[0])
    env.reset(env.tasks("train")[1])
    with pytest.raises(
        envs.EpisodeLost, match=r"its process ended \(exit status 7\), its last output: 'the wall falls'"
    ):
        env.step("exit")
    other.begin_step("hello")
    with pytest.raises(envs.EpisodeLost, match="because of another episode") as lost:
        other.finish_step()
    assert not lost.value.caused


def test_slow_steps_of_many_episodes_are_not_a_hang():
    env = make(time_limit_s=2.0)
    slots = [env.spawn() for _ in range(5)]
    for slot in slots:
        slot.reset(env.tasks("train")[0])
    for slot in slots:
        slot.begin_step("sleep 0.6")  # 3 s together
    assert all(slot.finish_step().won for slot in slots)


def test_exceptions_are_one_line_with_their_place():
    env = make()
    env.reset(env.tasks("train")[0])
    with pytest.raises(UserError, match=r"train-0, step 'raise' failed: KeyError: 'brick' \(.*wall_for_tests.py:\d+\)"):
        env.step("raise")
    env.reset(env.tasks("train")[0])
    with pytest.raises(envs.EpisodeLost, match="the mason is gone"):
        env.step("lost")
    env.reset(env.tasks("train")[0])
    with pytest.raises(UserError, match="cannot be sent to another process"):
        env.step("secret")
    assert env.reset(env.tasks("train")[0]).text == "wall 0"
    with pytest.raises(UserError, match="the wall has no split test"):
        env.tasks("test")
    with pytest.raises(UserError, match="there is no such wall"):
        make(prefix="no")
    with pytest.raises(UserError, match=r"wall_for_tests:Wall cannot be made: ZeroDivisionError: wall \(.*:\d+\)"):
        make(prefix="bug")


def test_counts_and_checks_while_waiting():
    env = make()
    calls = []
    env.while_waiting(lambda: calls.append(time.monotonic()))
    env.reset(env.tasks("train")[0])
    calls.clear()
    env.step("sleep 0.7")
    assert calls
    other = env.spawn()
    other.reset(env.tasks("train")[0])
    env.step("hello")
    assert env.take_metrics() == {"retrieval/queries": 2.0}
    assert env.take_metrics() == {}

    def stop():
        raise KeyboardInterrupt

    env.while_waiting(stop)
    with pytest.raises(KeyboardInterrupt):
        env.step("sleep 5")
