"""sync, stream and async on a real agent loop: the same updates to the bit, staleness, importance, replacement."""

import copy
import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from paw_fast.algorithms.base import Credit
from paw_fast.errors import UserError
from paw_fast.learner import Learner
from paw_fast.learner.loss_rows import WorldModelWeights, build_tables
from paw_fast.models.policy import Policy
from paw_fast.orchestrator import Orchestrator, oldest_version
from paw_fast.rollout.factory import make_engine, make_loop
from paw_fast.rollout.task_sampler import TaskSampler
from paw_fast.rollout.worker import EvalSession, LocalRolloutWorker


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
        self.player = LocalRolloutWorker(loop)
        self.learner = Learner(self.policy, None, self.config)
        self.sampler = TaskSampler(env.tasks("train"), 0)
        self.advanced, self.warnings = 0, []
        stage = lambda name: nullcontext()  # noqa: E731
        self.pipeline = Orchestrator(self.config, self.player, self.sampler, self.learner, stage, self.warnings.append)

    def advance(self):
        self.advanced += 1

    def step(self, number):
        batch = self.pipeline.batch(number, self.advance)
        metrics = self.learner.update(batch.trajectories, batch.sequences, batch.scores, number)
        self.player.update_weights(number + 1)
        return batch, metrics


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_sync_and_stream_give_the_same_updates_to_the_bit(make, start, layout):
    sync, stream = make("sync", layout), make("stream", layout)
    for number in range(3):
        (one, metrics), (other, same) = sync.step(number), stream.step(number)
        assert [t.seed for t in one.trajectories] == [t.seed for t in other.trajectories]
        assert metrics == same
        assert one.metrics == other.metrics
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
        plan = [(task, g, (0, g, i)) for g, task in enumerate(small_env.tasks("train")[:2]) for i in range(2)]
        played.append(sorted(loop.play(plan), key=lambda t: t.seed))
    assert played[0] == played[1]


def test_scores_of_groups_are_those_of_the_whole_batch(make):
    run = make("stream")
    batch = run.pipeline.batch(0, run.advance)
    whole = run.learner.compute_token_stats(batch.sequences)
    for a, b in zip(batch.scores.old_logprobs, whole.old_logprobs, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert batch.scores.entropies == pytest.approx(whole.entropies, abs=1e-5)
    assert batch.scores.importance is None


def test_async_stamps_its_age_and_stays_within_the_bound(make):
    run = make("async")
    ages = []
    for number in range(4):
        batch, _ = run.step(number)
        assert len(batch.trajectories) == 4
        assert sorted({t.seed[1] for t in batch.trajectories}) == [number]  # batches keep their order
        played = [x for t in batch.trajectories for x in t.transitions]
        versions = np.concatenate([x.policy_versions for x in played])
        assert len(versions) == sum(len(x.action_ids) for x in played)
        assert batch.metrics["async/staleness_mean"] == pytest.approx(number - versions.mean())
        assert batch.metrics["async/staleness_max"] == number - versions.min()
        assert batch.metrics["async/dropped_groups"] == 0
        ages.append(batch.metrics["async/staleness_max"])
        expected = [
            np.minimum(np.exp(old - np.array(x.rollout_logprobs)), 2.0)
            for x, old in zip(played, batch.scores.old_logprobs, strict=True)
        ]
        for a, b in zip(batch.scores.importance, expected, strict=True):
            assert a == pytest.approx(b, rel=1e-5)
    assert ages[0] == 0
    assert max(ages) == 1
    assert run.advanced == 16


def test_tokens_of_both_weights_may_stand_in_one_episode_and_their_logprobs_are_exact(make):
    """Tokens of the current weights have the log-prob that the trainer's own pass gives."""
    run = make("async")
    run.step(0)
    batch = run.pipeline.batch(1, run.advance)
    fresh = [
        abs(old - lp)
        for x, olds in zip(
            (x for t in batch.trajectories for x in t.transitions), batch.scores.old_logprobs, strict=True
        )
        for old, lp, version in zip(olds, x.rollout_logprobs, x.policy_versions, strict=True)
        if version == 1
    ]
    assert fresh
    assert max(fresh) < 1e-4


def test_groups_past_the_bound_are_dropped_counted_and_replaced(make):
    """The generator misses an update and gets it when the first group has been found too old."""
    run = make("async", max_staleness=1)
    run.step(0)
    batch = run.pipeline.batch(1, run.advance)
    run.learner.update(batch.trajectories, batch.sequences, batch.scores, 1)  # and nobody tells the player
    play_on = run.player.submit

    def submit(episodes, temperature=None):
        if len(episodes) == run.config.rollout.group_size:
            run.player.update_weights(3)
        play_on(episodes, temperature)

    run.player.submit = submit
    run.player.policy_version = run.player.loop.engine.policy_version = 0  # what it samples with counts as old
    batch = run.pipeline.batch(3, run.advance)
    assert batch.metrics["async/dropped_groups"] >= 1
    assert len(batch.trajectories) == 4
    assert 3 - oldest_version(batch.trajectories) <= 1


def test_importance_weights_reach_the_loss(make):
    """Halved weights halve the policy rows' surrogate; the world-model rows keep theirs."""
    run = make("async")
    batch = run.pipeline.batch(0, run.advance)
    half = dataclasses.replace(batch.scores, importance=[np.full_like(w, 0.5) for w in batch.scores.importance])
    counts = [len(old) for old in batch.scores.old_logprobs]
    credit = Credit([np.ones(n, np.float32) for n in counts], None, np.ones(4, dtype=bool))
    weights = WorldModelWeights(np.ones(4), np.ones(len(counts), dtype=bool))
    tables = build_tables(batch.sequences, half, credit, weights)
    for table in tables:
        policy = table.kinds == 1
        assert set(table.importance[policy].tolist()) == {0.5}
        assert set(table.importance[~policy].tolist()) <= {1.0}


def test_an_evaluation_in_between_leaves_the_batches_alone(make, small_env):
    run = make("async")
    run.step(0)
    sitting = EvalSession(run.player, 0.4, run.pipeline.kept)
    played = list(sitting.play([(task, i, (0, 20_000, i)) for i, task in enumerate(small_env.tasks("unseen"))]))
    assert sorted(t.seed for t in played) == [(0, 20_000, i) for i in range(4)]
    batch, _ = run.step(1)
    assert sorted({t.seed[1] for t in batch.trajectories}) == [1]
    assert len(batch.trajectories) == 4


def test_the_sampler_is_saved_where_learning_stands(make):
    run = make("async")
    run.step(0)
    assert run.sampler.state()["drawn"] == 4  # the second batch is being played
    assert run.pipeline.sampler_state()["drawn"] == 2


@pytest.mark.parametrize("name", ["sync", "stream"])
def test_an_interrupted_batch_leaves_the_sampler_where_it_was(make, name):
    run = make(name)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.pipeline.batch(0, interrupt)
    assert run.sampler.state()["drawn"] == 0
    assert not run.player.loop.busy
    again, whole = run.pipeline.batch(0, run.advance), make(name).pipeline.batch(0, run.advance)
    assert [t.transitions for t in again.trajectories] == [t.transitions for t in whole.trajectories]


def test_a_gap_past_the_limit_stops_before_the_update(make):
    run = make("sync")
    score = run.pipeline._score
    run.pipeline._score = lambda group: _shifted(score(group))
    with pytest.raises(UserError, match=r"differ by 2 nats .* was not updated"):
        run.pipeline.batch(0, run.advance)


def _shifted(scores):
    return dataclasses.replace(scores, old_logprobs=[old - 2.0 for old in scores.old_logprobs])
