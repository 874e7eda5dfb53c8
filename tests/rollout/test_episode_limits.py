"""What ends an episode and what fits: step limits, first prompts that are too long, the last observation."""

import copy
import dataclasses
from contextlib import closing

import numpy as np
import pytest
import torch
from make_records import agent_settings, request_for, update
from rollout_helpers import in_order

from paw_fast.cli import main
from paw_fast.config import algo_config
from paw_fast.envs.base import BaseEnv, StepResult
from paw_fast.errors import UserError
from paw_fast.evaluation.success import evaluate, overlong_warning
from paw_fast.learner import Learner, join_groups
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.orchestrator import make_orchestrator
from paw_fast.rollout.agent_loop import AgentLoop, check_first_prompts
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.engines.base import Completion
from paw_fast.rollout.factory import make_engine, make_loop
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.rollout.task_sampler import TaskSampler
from paw_fast.rollout.worker import LocalRolloutWorker
from paw_fast.types import EpisodeId, Observation, Task, Trajectory

LAYOUTS = pytest.mark.parametrize("layout", ["trajectory", "window"])


class Saying:
    """A generator that always says the same."""

    policy_version = 0

    def __init__(self, chat, text="look"):
        self.chat, self.ids, self.queue = chat, (*chat.encode(text), chat.turn_end), []

    def submit(self, request):
        self.queue.append(request)

    def step(self):
        queue, self.queue = self.queue, []
        n = len(self.ids)
        return [Completion(r.episode, self.ids, (-1.0,) * n, True, (self.policy_version,) * n) for r in queue]

    def release(self, episode):
        pass

    def update_weights(self, version):
        self.policy_version = version

    def close(self):
        pass


class Rooms(BaseEnv):
    """Observations of as many words as a task says: the first, and those after an action. Wins at step `win_at`."""

    name = "alfworld"

    def __init__(self, max_steps=3):
        self.max_steps = max_steps

    def tasks(self, split):
        return [room(f"{split}{i}", 5) for i in range(6)]

    def reset(self, task):
        self.task, self.steps = task, 0
        return Observation("look " * task.info["words"], ("look",), "t")

    def step(self, command):
        self.steps += 1
        won = self.steps == self.task.info.get("win_at")
        over = won or self.steps >= self.max_steps
        seen = Observation("seen " * self.task.info.get("later", 1), ("look",))
        return StepResult(seen, over, won, truncated=over and not won)

    def spawn(self):
        return Rooms(self.max_steps)


def room(name, words, **info):
    return Task(name, info={"words": words, **info})


def loop_of(chat, max_steps=3, **settings):
    options = agent_settings(**{"max_steps": max_steps, "max_action_tokens": 8, "max_sequence_tokens": 256, **settings})
    envs = [Rooms(max_steps), Rooms(max_steps)]
    return AgentLoop(Saying(chat), envs, chat, PromptTemplate.load("compact"), options)


def play(loop, *tasks):
    return in_order(loop.play([request_for(task, i) for i, task in enumerate(tasks)]))


# ------------------------------------------------------------------------------------------------ the step limit


@LAYOUTS
def test_an_episode_that_runs_out_of_steps_is_truncated_and_a_win_at_the_last_step_is_not(chat, layout):
    lost, late, early = play(
        loop_of(chat, layout=layout), room("lost", 5), room("late", 5, win_at=3), room("early", 5, win_at=1)
    )
    assert [(t.won, t.truncated, len(t.transitions)) for t in (lost, late, early)] == [
        (False, True, 3),
        (True, False, 3),
        (True, False, 1),
    ]


def test_an_episode_of_alfworld_that_runs_out_of_steps_is_truncated(small_env, chat):
    task = small_env.tasks("train")[0]
    env = small_env.spawn()
    env.reset(task)
    steps = [env.step("look") for _ in range(3)]
    assert [(s.done, s.truncated) for s in steps] == [(False, False), (False, False), (True, True)]
    options = agent_settings(max_steps=3, max_action_tokens=8, max_sequence_tokens=2048)
    loop = AgentLoop(Saying(chat), [small_env.spawn()], chat, PromptTemplate.load("compact"), options)
    (lost,) = play(loop, task)
    assert (lost.truncated, lost.won, len(lost.transitions), lost.overrun) == (True, False, 3, "")


# ------------------------------------------------------------------------------------------------ first prompts


def test_a_task_whose_first_prompt_does_not_fit_is_over_at_once_and_the_others_are_played(chat):
    before, long, after = play(loop_of(chat), room("a", 5), room("long", 400), room("b", 5))
    assert (long.truncated, long.won, long.transitions, long.episode_return) == (True, False, (), 0.0)
    assert len(before.transitions) == len(after.transitions) == 3


def test_an_evaluation_counts_it_as_lost_and_says_so(chat):
    result = evaluate(loop_of(chat), [room("a", 5, win_at=1), room("long", 400)])
    assert (result.successes, result.num_tasks, result.num_overlong) == (1, 2, 1)
    assert result.as_json()["overlong_tasks"] == 1
    assert overlong_warning(result).startswith("1 of 2 evaluation tasks count as lost")
    assert overlong_warning(evaluate(loop_of(chat), [room("a", 5)])) is None


class Run:
    """A trainer's parts on rooms, some of which are too long."""

    def __init__(self, config, start, pipeline, layout, words):
        self.config = dataclasses.replace(
            config,
            layout=layout,
            pipeline=dataclasses.replace(config.pipeline, name=pipeline, gap_stop=1e9, gap_warn=1e9),
            env=dataclasses.replace(config.env, template="compact", max_steps=3),
            rollout=dataclasses.replace(config.rollout, max_sequence_tokens=256, max_action_tokens=8),
        )
        policy = Policy(copy.deepcopy(start.model), start.tokenizer)
        loop = make_loop(start.tokenizer, policy.model.config, make_engine(policy, self.config), Rooms(), self.config)
        self.learner = Learner(policy, None, self.config)
        self.warnings = []
        self.tasks = [room(f"r{i}", n) for i, n in enumerate(words)]
        sampler = TaskSampler(self.tasks, 0)
        self.worker = LocalRolloutWorker(loop, sync_timeout_s=60.0)
        self.orchestrator = make_orchestrator(self.config, self.worker, sampler, self.warnings.append)

    def collect(self, number):
        groups = []
        with closing(self.orchestrator.next_batch(number)) as ended:
            for trajectories in ended:
                group = self.learner.make_batch(trajectories)
                groups.append((group, self.learner.compute_token_stats(group)))
        return join_groups(groups)

    def step(self, number):
        batch, stats = self.collect(number)
        metrics = update(self.learner, batch, stats, number)
        self.worker.update_weights(number + 1)
        return batch, metrics


@LAYOUTS
@pytest.mark.parametrize("pipeline", ["sync", "stream", "async"])
def test_training_leaves_such_tasks_out_and_draws_others(small_config, start, pipeline, layout):
    run = Run(small_config(), start, pipeline, layout, [5, 400, 5, 400, 5, 5])
    left_out = 0
    for number in range(3):
        batch, metrics = run.step(number)
        assert len(batch.trajectories) == 4
        assert all(t.transitions and t.task.info["words"] == 5 for t in batch.trajectories)
        assert np.isfinite(metrics["policy/loss"])
        left_out += run.orchestrator.take_metrics().get("rollout/overlong_tasks", 0)
    assert left_out >= 2
    (warning,) = run.warnings
    assert "r1" in warning or "r3" in warning
    assert "--rollout.max-sequence-tokens 256" in warning


@pytest.mark.parametrize("pipeline", ["sync", "async"])
def test_training_on_nothing_but_such_tasks_is_one_line(small_config, start, pipeline):
    run = Run(small_config(), start, pipeline, "trajectory", [400, 400, 400])
    with pytest.raises(UserError, match=r"no training task's first prompt fits --rollout\.max-sequence-tokens 256"):
        run.step(0)


@LAYOUTS
@pytest.mark.parametrize("algo", ["grpo", "rloo", "gigpo"])
def test_an_update_takes_a_trajectory_without_transitions(small_config, start, layout, algo):
    run = Run(small_config(), start, "sync", layout, [5, 5])
    run.config = dataclasses.replace(run.config, algo=algo_config(algo, run.config.algo))
    learner = Learner(run.learner.policy, None, run.config)
    played = run.collect(0)[0].trajectories
    empty = Trajectory(Task("long"), EpisodeId(0, 7, 0), (), 0.0, 0.0, False, truncated=True)
    other = dataclasses.replace(empty, episode_id=EpisodeId(0, 0, 2))
    batch = learner.make_batch([empty, *played[:2], other, *played[2:]])
    assert {s.trajectory for s in batch.sequences} == {1, 2, 4, 5}
    metrics = update(learner, batch)
    assert np.isfinite(metrics["policy/loss"])


def test_a_run_is_refused_before_it_begins_where_most_tasks_do_not_fit(chat):
    settings = agent_settings(max_action_tokens=8, max_sequence_tokens=256)
    check = lambda words: check_first_prompts(  # noqa: E731
        Rooms(), [room(f"r{n}-{i}", n) for i, n in enumerate(words)], chat, PromptTemplate.load("compact"), settings
    )
    check([5, 5, 400])
    with pytest.raises(UserError, match=r"2 of 3 tasks do not fit: r400-1 has \d+ tokens.*--rollout\.max-sequence-tok"):
        check([5, 400, 400])


def test_the_command_line_refuses_it_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"max-sequence-tokens") as error:
        main.run(
            [
                "train", "--env", "alfworld", "--preset", "tiny", "--rollout.max-sequence-tokens", "24",
                "--rollout.max-action-tokens", "16", "--warm-start.episodes", "6", "--env.num-train", "8",
                "--env.num-unseen", "4", "--run-dir", str(tmp_path / "run"),
            ]
        )  # fmt: skip
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ the last observation


@LAYOUTS
def test_no_training_sequence_is_longer_than_the_limit(chat, layout):
    """The observation after the last action is cut to what fits, and counted as cut."""
    limit = 120
    tasks = [room("short", 5), room("long", 5, later=300), room("some", 5, later=2)]
    for trajectory in play(loop_of(chat, layout=layout, max_sequence_tokens=limit), *tasks):
        sequences = build_sequences([trajectory], layout)
        assert all(len(s.ids) <= limit for s in sequences)
        for s in sequences:
            assert all(p < len(s.ids) for span in s.spans for p in span.observation)
        cut = [t for t in trajectory.transitions if t.observation_text.count("seen") > sum(t.observation_mask)]
        assert (trajectory.num_cut > 0) == (trajectory.task.task_id == "long") == bool(cut)
        for t in cut:
            assert len(t.prompt_ids + t.action_ids + t.observation_ids) == limit
            whole, mask = chat.follow(t.action_ids, "", t.observation_text, "")
            assert list(t.observation_ids) == whole[: len(t.observation_ids)]
            assert list(t.observation_mask) == mask[: len(t.observation_ids)]


def test_turns_of_a_longer_horizon_are_added_only_as_far_as_they_fit(chat):
    (trajectory,) = play(loop_of(chat, layout="window"), room("a", 5, later=20))
    lengths = [len(s.ids) for s in build_sequences([trajectory], "window", 3)]
    limit = lengths[0] - 1
    short = build_sequences([trajectory], "window", 3, limit)
    assert len(short[0].ids) <= limit < lengths[0]
    assert len(short[0].ids) == len(build_sequences([trajectory], "window", 2)[0].ids)


def test_positions_past_the_model_s_are_never_asked_for(small_config, start):
    """A model of 64 positions and a longer --rollout.max-sequence-tokens: the model's limit counts."""
    model = tiny.build_model(
        len(start.tokenizer), hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, max_positions=64
    )  # fmt: skip
    config = small_config(max_sequence_tokens=4096, max_action_tokens=4)
    config = dataclasses.replace(config, layout="trajectory", env=dataclasses.replace(config.env, max_steps=9))
    policy = Policy(model.eval(), start.tokenizer)
    loop = make_loop(start.tokenizer, model.config, make_engine(policy, config), Rooms(9), config)
    with torch.no_grad():
        played = list(loop.play([request_for(room("a", 5, later=30))]))
    assert max(len(s.ids) for s in build_sequences(played, "trajectory")) <= 64
    assert ChatFormat(start.tokenizer).stop_ids == loop.chat.stop_ids
