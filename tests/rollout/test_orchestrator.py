"""sync, stream and async on a real agent loop: the same updates to the bit, staleness, importance, replacement."""

import copy
import dataclasses
from contextlib import closing

import numpy as np
import pytest
import torch
from make_records import request_for, update
from rollout_helpers import in_order

from paw_fast.algorithms import off_policy
from paw_fast.algorithms.base import Credit
from paw_fast.algorithms.world_model import WorldModelWeights
from paw_fast.errors import UserError
from paw_fast.learner import Learner, join_groups
from paw_fast.learner.loss_rows import build_tables
from paw_fast.models.policy import Policy
from paw_fast.orchestrator import make_orchestrator, oldest_version
from paw_fast.rollout.factory import make_engine, make_loop
from paw_fast.rollout.task_sampler import TaskSampler
from paw_fast.rollout.worker import EvalSession, LocalRolloutWorker
from paw_fast.types import EVALUATION, EpisodeId


@pytest.fixture
def make(small_config, small_env, start):
    """Makes a trainer's parts, from the same start each time."""
    return lambda name, layout="trajectory", **pipeline: Run(
        small_config(slots=6), small_env, start, name, layout, pipeline
    )


class Run:
    def __init__(self, config, env, start, name, layout, pipeline):
        self.config = dataclasses.replace(
            config, layout=layout, pipeline=dataclasses.replace(config.pipeline, name=name, **pipeline)
        )
        self.policy = Policy(copy.deepcopy(start.model), start.tokenizer)
        engine = make_engine(self.policy, self.config)
        loop = make_loop(start.tokenizer, self.policy.model.config, engine, env, self.config)
        self.worker = LocalRolloutWorker(loop, sync_timeout_s=60.0)
        self.learner = Learner(self.policy, None, self.config)
        self.sampler = TaskSampler(env.tasks("train"), 0)
        self.advanced, self.warnings, self.metrics = 0, [], {}
        self.orchestrator = make_orchestrator(self.config, self.worker, self.sampler, self.warnings.append)

    def advance(self, ended):
        self.advanced += len(ended)

    def collect(self, number, advance=None):
        """The batch of a step and its statistics, as the trainer collects them; its metrics in `metrics`."""
        groups = []
        with closing(self.orchestrator.next_batch(number, advance or self.advance)) as ended:
            for trajectories in ended:
                group = self.learner.make_batch(trajectories)
                groups.append((group, self.learner.compute_token_stats(group)))
        batch, stats = join_groups(groups)
        stats, metrics = off_policy.correct(batch, stats, self.config.pipeline, number, self.warnings.append)
        self.metrics = self.orchestrator.take_metrics() | metrics
        return batch, stats

    def step(self, number):
        batch, stats = self.collect(number)
        metrics = update(self.learner, batch, stats, number)
        self.worker.update_weights(number + 1)
        return batch, stats, metrics | self.metrics


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_sync_and_stream_give_the_same_updates_to_the_bit(make, start, layout):
    sync, stream = make("sync", layout), make("stream", layout)
    for number in range(3):
        (one, _, metrics), (other, _, same) = sync.step(number), stream.step(number)
        assert [t.episode_id for t in one.trajectories] == [t.episode_id for t in other.trajectories]
        assert one == other
        assert metrics == same
    for a, b in zip(sync.policy.model.parameters(), stream.policy.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(sync.policy.model.model.norm.weight, start.model.model.norm.weight)
    assert sync.advanced == stream.advanced == 12


def test_generation_is_the_same_with_and_without_the_world_model(small_config, small_env, start):
    """Token for token and to the bit of every log-prob: the world model is a loss and nothing else."""
    played = []
    for enabled in (True, False):
        base = small_config(slots=6)
        config = dataclasses.replace(base, paw=dataclasses.replace(base.paw, enabled=enabled))
        loop = make_loop(start.tokenizer, start.model.config, make_engine(start, config), small_env, config)
        plan = [request_for(task, g, i) for g, task in enumerate(small_env.tasks("train")[:2]) for i in range(2)]
        played.append(in_order(loop.play(plan)))
    assert played[0] == played[1]


def test_statistics_of_groups_are_those_of_the_whole_batch(make):
    run = make("stream")
    batch, stats = run.collect(0)
    whole = run.learner.compute_token_stats(batch)
    for a, b in zip(stats.old_logprobs, whole.old_logprobs, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert stats.entropies == pytest.approx(whole.entropies, abs=1e-5)
    assert stats.importance is None


def test_groups_joined_in_any_order_are_the_batch_of_all(make):
    run = make("stream")
    batch, _ = run.collect(0)
    parts = [run.learner.make_batch(batch.trajectories[i : i + 2]) for i in (2, 0)]
    joined, _ = join_groups([(part, run.learner.compute_token_stats(part)) for part in parts])
    assert joined == batch == run.learner.make_batch(batch.trajectories)


def test_async_stamps_its_age_and_stays_within_the_bound(make):
    run = make("async")
    ages = []
    for number in range(4):
        batch, stats, metrics = run.step(number)
        assert len(batch.trajectories) == 4
        assert {t.episode_id.step for t in batch.trajectories} == {number}  # steps keep their order
        versions = np.concatenate([x.policy_versions for x in batch.transitions])
        assert len(versions) == sum(len(x.action_ids) for x in batch.transitions)
        assert metrics["async/staleness_mean"] == pytest.approx(number - versions.mean())
        assert metrics["async/staleness_max"] == number - versions.min()
        assert metrics["async/dropped_groups"] == 0
        ages.append(metrics["async/staleness_max"])
        expected = [
            np.minimum(np.exp(old - np.array(x.rollout_logprobs)), 2.0)
            for x, old in zip(batch.transitions, stats.old_logprobs, strict=True)
        ]
        for a, b in zip(stats.importance, expected, strict=True):
            assert a == pytest.approx(b, rel=1e-5)
    assert ages[0] == 0
    assert max(ages) == 1
    assert run.advanced == 16


def test_tokens_of_both_weights_may_stand_in_one_episode_and_their_logprobs_are_exact(make):
    """Tokens of the current weights have the log-prob that the trainer's own pass gives."""
    run = make("async")
    run.step(0)
    batch, stats = run.collect(1)
    fresh = [
        abs(old - lp)
        for x, olds in zip(batch.transitions, stats.old_logprobs, strict=True)
        for old, lp, version in zip(olds, x.rollout_logprobs, x.policy_versions, strict=True)
        if version == 1
    ]
    assert fresh
    assert max(fresh) < 1e-4


def test_groups_past_the_bound_are_dropped_counted_and_replaced(make):
    """The engine misses an update, and gets it when the first group has been found too old."""
    run = make("async", max_staleness=1)
    run.step(0)
    batch, stats = run.collect(1)
    update(run.learner, batch, stats, 1)  # and the worker is not told
    submit_on = run.worker.submit

    def submit(requests, temperature=None):
        if len(requests) == run.config.rollout.group_size:
            run.worker.update_weights(3)
        submit_on(requests, temperature)

    run.worker.submit = submit
    run.worker.policy_version = run.worker.loop.engine.policy_version = 0  # what it samples with counts as old
    batch, _ = run.collect(3)
    assert run.metrics["async/dropped_groups"] >= 1
    assert len(batch.trajectories) == 4
    assert 3 - oldest_version(batch.trajectories) <= 1


def test_importance_weights_reach_the_loss(make):
    """They are those of the policy rows; world-model rows have none."""
    run = make("async")
    batch, stats = run.collect(0)
    half = dataclasses.replace(stats, importance=[np.full_like(w, 0.5) for w in stats.importance])
    counts = [len(old) for old in stats.old_logprobs]
    credit = Credit([np.ones(n, np.float32) for n in counts], np.ones(4, dtype=bool))
    every = np.ones(len(counts), dtype=bool)
    tables = build_tables(batch.sequences, half, credit, WorldModelWeights(np.ones(4), every, every))
    for table in tables:
        policy = table.kinds == 1
        assert set(table.importance[policy].tolist()) == {0.5}
        assert set(table.importance[~policy].tolist()) <= {1.0}


def test_an_evaluation_in_between_leaves_the_batches_alone(make, small_env):
    run = make("async")
    run.step(0)
    session = EvalSession(run.worker, 0.4, run.orchestrator.kept)
    tasks = enumerate(small_env.tasks("unseen"))
    played = list(session.play([request_for(task, i, step=EVALUATION, seed=(0, 20_000, i)) for i, task in tasks]))
    assert sorted(t.episode_id for t in played) == [EpisodeId(EVALUATION, i, 0) for i in range(4)]
    batch, *_ = run.step(1)
    assert {t.episode_id.step for t in batch.trajectories} == {1}
    assert len(batch.trajectories) == 4


def test_the_sampler_is_saved_where_learning_stands(make):
    run = make("async")
    run.step(0)
    assert run.sampler.state()["drawn"] == 4  # the second step's episodes are being played
    assert run.orchestrator.sampler_state()["drawn"] == 2


@pytest.mark.parametrize("where", ["rollout", "statistics"])
@pytest.mark.parametrize("name", ["sync", "stream"])
def test_an_interrupted_batch_leaves_the_sampler_where_it_was(make, name, where, monkeypatch):
    run = make(name)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "statistics":
            patch.setattr(run.learner, "compute_token_stats", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.collect(0, interrupt if where == "rollout" else None)
    assert run.sampler.state()["drawn"] == 0
    assert run.orchestrator.sampler_state()["drawn"] == 0
    assert not run.worker.loop.busy
    (again, _), (whole, _) = run.collect(0), make(name).collect(0)
    assert [t.transitions for t in again.trajectories] == [t.transitions for t in whole.trajectories]


def test_dynamic_sampling_replaces_groups_of_equal_returns(make, monkeypatch):
    """The first round has no group of different returns, the second one, and the third round is the last."""
    run = make("stream")
    algo = dataclasses.replace(run.config.algo, dynamic_sampling=True, max_rounds=3)
    run.orchestrator.config = dataclasses.replace(run.config, algo=algo)
    varied = iter([False, False, True, False, False])
    monkeypatch.setattr("paw_fast.orchestrator.has_reward_variance", lambda group: np.array([next(varied)] * 2))
    groups = list(run.orchestrator.next_batch(0))
    assert sorted(group[0].group for group in groups) == [0, 1, 2, 3, 4]
    assert run.orchestrator.take_metrics() == {"rollout/rounds": 3.0}
    assert run.sampler.state()["drawn"] == 5


def test_a_gap_past_the_limit_stops_before_the_update(make, monkeypatch):
    run = make("sync")
    compute = run.learner.compute_token_stats
    monkeypatch.setattr(run.learner, "compute_token_stats", lambda batch: _shifted(compute(batch)))
    with pytest.raises(UserError, match=r"differ by 2 nats .* was not updated"):
        run.collect(0)


def _shifted(stats):
    return dataclasses.replace(stats, old_logprobs=[old - 2.0 for old in stats.old_logprobs])
