"""Makes records and takes update steps, for tests of any folder."""

import dataclasses

from paw_fast.algorithms import world_model
from paw_fast.algorithms.base import make_algorithm
from paw_fast.config import TrainConfig
from paw_fast.rollout.agent_loop import AgentSettings
from paw_fast.types import EpisodeId, EpisodeRequest


def request_for(task, group=0, index=0, *, step=0, seed=None):
    """An episode to play; its seed is (step, group, index) where none is given."""
    return EpisodeRequest(EpisodeId(step, group, index), task, seed or (step, group, index))


def agent_settings(**changes):
    """How episodes are played by default, with changes."""
    config = TrainConfig()
    parts = {**vars(config.env), **vars(config.rollout), **vars(config.algo), "layout": "trajectory"}
    return AgentSettings(**{f.name: parts[f.name] for f in dataclasses.fields(AgentSettings)} | changes)


def update(learner, batch, stats=None, step=0):
    """What a training step does with a batch: statistics where none are given, credit, selection, the update."""
    stats = stats or learner.compute_token_stats(batch)
    credit = make_algorithm(learner.config).credit(batch, stats)
    weights = world_model.select(batch, stats, learner.config, step)
    return learner.update(batch, stats, credit, weights, step)
