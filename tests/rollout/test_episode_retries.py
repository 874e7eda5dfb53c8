"""Tests that episodes whose environment fails are played again, and counted."""

from dataclasses import replace

import pytest
from make_records import agent_settings, request_for
from rollout_helpers import in_order

from paw_fast.cli import main
from paw_fast.config import WarmStartConfig
from paw_fast.envs.base import BaseEnv, BaseExpert, EpisodeLost, StepResult
from paw_fast.errors import UserError
from paw_fast.rollout.agent_loop import AgentLoop
from paw_fast.rollout.engines.base import Completion
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.runs.metrics import read_metrics
from paw_fast.sft.warm_start import demonstrate
from paw_fast.types import Observation, Task


class Repeating:
    """An engine that always samples the same command."""

    def __init__(self, chat):
        self.chat, self.ids, self.queue = chat, (*chat.encode("look"), chat.turn_end), []

    def submit(self, request):
        self.queue.append(request)

    def step(self):
        queue, self.queue = self.queue, []
        n = len(self.ids)
        return [Completion(r.episode, self.ids, (-1.0,) * n, True, (0,) * n) for r in queue]

    def release(self, episode):
        self.queue = [r for r in self.queue if r.episode != episode]


class Failing(BaseEnv):
    """Wins at step 2. `failures[task_id]`: calls ("reset" or "step") that still fail, and whether they are its own."""

    def __init__(self, failures):
        self.failures, self.played = failures, []

    def tasks(self, split):
        return [Task(f"{split}{i}") for i in range(4)]

    def _fail(self, call):
        left = self.failures.get(self.task.task_id, [])
        if left and left[0][0] == call:
            raise EpisodeLost(f"{self.task.task_id} fails", caused=left.pop(0)[1])

    def reset(self, task):
        self.task, self.steps = task, 0
        self.played.append(task.task_id)
        self._fail("reset")
        return Observation("start", ("look",), "t")

    def step(self, command):
        self._fail("step")
        self.steps += 1
        return StepResult(Observation("seen"), self.steps == 2, self.steps == 2)

    def spawn(self):
        return Failing(self.failures)


def loop_of(chat, failures, **settings):
    options = agent_settings(
        **{"max_steps": 3, "max_action_tokens": 8, "max_sequence_tokens": 256, "layout": "window", **settings}
    )
    env = Failing(failures)
    return AgentLoop(Repeating(chat), [env, env.spawn()], chat, PromptTemplate.load("compact"), options)


def test_failed_episodes_are_played_again_and_counted(chat, capsys):
    failures = {"b": [("step", True)], "c": [("reset", True), ("step", True)], "d": [("step", False)] * 9}
    loop = loop_of(chat, failures)
    ended = in_order(loop.play([request_for(Task(name), number) for number, name in enumerate("abcd")]))
    assert [(t.task.task_id, t.won, len(t.transitions)) for t in ended] == [(name, True, 2) for name in "abcd"]
    assert loop.take_metrics() == {"rollout/retried_episodes": 12.0}
    assert loop.take_metrics() == {}
    said = capsys.readouterr().err
    assert said.count("the episode is played again") == 3
    assert "b fails" in said
    assert len(loop._free) == 2


def test_an_episode_that_always_fails_stops_the_run(chat):
    loop = loop_of(chat, {"b": [("reset", True)] * 9}, max_retries=3)
    with pytest.raises(UserError, match=r"b fails; this episode has failed 4 times: .*--env.max-retries, 3"):
        list(loop.play([request_for(Task(name), number) for number, name in enumerate("ab")]))
    assert [t.won for t in loop.play([request_for(Task("a"), 0)])] == [True]
    with pytest.raises(UserError, match="failed 101 times"):
        list(loop_of(chat, {"b": [("step", False)] * 200}).play([request_for(Task("b"), 0)]))


class Looking(BaseExpert):
    def reset(self, observation):
        pass

    def act(self, observation):
        return "look"


def test_demonstrations_are_played_again():
    settings = replace(WarmStartConfig(), mistake_prob=0.0)
    env = Failing({"train1": [("step", True), ("reset", True)]})
    assert len(demonstrate(env, Looking(), env.tasks("train"), settings)) == 4
    assert env.played.count("train1") == 3
    env = Failing({"train1": [("step", True)] * 3})
    with pytest.raises(EpisodeLost, match="train1 fails"):
        demonstrate(env, Looking(), env.tasks("train"), settings)


GAME = '''
import os
import time
from pathlib import Path
from paw_fast.envs import BaseEnv, BaseExpert, Observation, StepResult, Task

class Bell(BaseEnv):
    """Won by ringing. It hangs once and dies once, in the resets of two tasks."""

    class Expert(BaseExpert):
        def reset(self, observation):
            pass
        def act(self, observation):
            return "ring"

    def tasks(self, split):
        return [Task(f"{split}{i}") for i in range(6)]

    def reset(self, task):
        self.steps = 0
        mark = Path("marks") / task.task_id
        if task.split == "" and task.task_id in ("unseen1", "unseen2") and not mark.exists():
            mark.parent.mkdir(exist_ok=True)
            mark.write_text("")
            if task.task_id == "unseen1":
                time.sleep(1000)
            os._exit(3)
        return Observation("a bell", ("ring", "wait"), "ring the bell")

    def step(self, command):
        self.steps += 1
        return StepResult(Observation("..."), command == "ring" or self.steps > 2, command == "ring")
'''


@pytest.mark.slow
def test_a_run_goes_on_after_a_hang_and_a_crash(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "bell_for_tests.py").write_text(GAME)
    options = [
        "--steps", "1", "--eval-every", "1", "--eval-tasks", "4", "--rollout.groups", "2", "--rollout.group-size", "2",
        "--rollout.slots", "4", "--algo.minibatches", "1", "--warm-start.episodes", "6", "--warm-start.layers", "1",
        "--warm-start.vocab-size", "300", "--env.time-limit-s", "3", "--env.processes", "2",
    ]  # fmt: skip
    args = ["train", "--env", "bell_for_tests:Bell", "--preset", "tiny", *options, "--run-dir", "run"]
    assert main.run(args) == 0
    rows = read_metrics(tmp_path / "run")
    assert sum(row.get("rollout/retried_episodes", 0) for row in rows) >= 2
    assert rows[0]["success/eval_total"] == 4
    said = capsys.readouterr().err
    assert "did not respond within 3 s: the episode is played again" in said
    assert "its process ended (exit status 3)" in said
