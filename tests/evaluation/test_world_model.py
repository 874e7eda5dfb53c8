"""The measure of the world model: a model that has learned the action's effect, and one that has not."""

import numpy as np
import pytest
import torch

from paw_fast.evaluation.world_model import measure_world_model
from paw_fast.kernels import LossSettings
from paw_fast.learner import packing
from paw_fast.learner.forward_backward import backward
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.types import EpisodeId, Task, Trajectory, Transition


def episodes(effect, count=60, seed=0):
    """One turn each: the observation is 30 + action where `effect`, else one of the same tokens at random."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        action = int(rng.integers(4))
        seen = 30 + (action if effect else int(rng.integers(4)))
        t = Transition(
            (5, 6), (20 + action,), (0.0,), (7, seen, seen), (False, True, True), f"act {action}", "o", "s", 0.0, True
        )
        out.append(Trajectory(Task("t"), EpisodeId(0, 0, 0), (t,), 0.0, 0.0, False))
    return out


def trained(trajectories):
    policy = Policy(tiny.build_model(40, hidden=32, layers=2, heads=2, kv_heads=1, ffn=64, seed=0), None)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    sequences = build_sequences(trajectories, "window")
    tables = [packing.observation_rows(s, [1 / 100]) for s in sequences]
    batch = packing.pack(sequences, tables, range(len(sequences)), policy.device)
    for _ in range(60):
        backward(policy, batch, LossSettings(wm_loss="ce"), 10**6)
        optimizer.step()
        optimizer.zero_grad()
    return policy


def measure(policy, trajectories, **more):
    return measure_world_model(policy, trajectories, token_budget=64, chunk=7, **more)


def test_the_gap_tells_whether_the_actions_effect_was_learned():
    learned = measure(trained(episodes(True)), episodes(True, seed=1))
    assert learned.accuracy > 0.95
    assert learned.probability > 0.9
    # After another action the first of the two tokens is always wrong.
    assert learned.shuffled_accuracy <= 0.5
    assert learned.action_gap > 0.35
    idle = measure(trained(episodes(False)), episodes(False, seed=1))
    assert abs(idle.action_gap) < 0.1
    assert idle.num_transitions == 60
    assert idle.num_tokens == 120


def test_probabilities_are_those_of_a_plain_forward_pass():
    policy = trained(episodes(True, count=8))
    held_out = episodes(True, count=5, seed=3)
    expected, hits = [], []
    for trajectory in held_out:
        (t,) = trajectory.transitions
        ids = torch.tensor([t.prompt_ids + t.action_ids + t.observation_ids])
        with torch.no_grad():
            hidden = policy.hidden(ids[0], torch.arange(ids.shape[1]), (ids.shape[1],))
            rows = torch.softmax(policy.lm_head(hidden), -1)
        for position in (4, 5):
            expected.append(float(rows[position - 1, ids[0, position]]))
            hits.append(int(rows[position - 1].argmax()) == int(ids[0, position]))
    got = measure(policy, held_out)
    assert got.probability == pytest.approx(np.mean(expected), abs=1e-5)
    assert got.accuracy == pytest.approx(np.mean(hits))


def test_what_is_drawn_depends_on_the_seed_alone():
    policy = trained(episodes(True, count=8))
    many = episodes(True, count=40, seed=2)
    assert measure(policy, many, max_transitions=10) == measure(policy, many, max_transitions=10)
    assert measure(policy, many, max_transitions=10, seed=1) != measure(policy, many, max_transitions=10)
    assert measure(policy, many, max_transitions=10).num_transitions == 10


def test_without_an_observation_there_is_nothing_to_measure():
    policy = Policy(tiny.build_model(40, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32), None)
    silent = Transition((5,), (20,), (0.0,), (7,), (False,), "a", "", "s", 0.0, True)
    assert measure(policy, [Trajectory(Task("t"), EpisodeId(0, 0, 0), (silent,), 0.0, 0.0, False)]) is None
    one = measure(policy, episodes(True, count=1))
    assert one.action_gap == pytest.approx(0.0)
