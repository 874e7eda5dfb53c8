"""Imitation: batches and sequences without an action to imitate, and which rows the reported loss is of."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from paw_fast.config import load_preset
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.sft.warm_start import imitate
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

VOCAB = 60


@pytest.fixture
def policy():
    return Policy(tiny.build_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, seed=2), None)


def config(**warm_start):
    base = load_preset("tiny")
    settings = {"noop_share": 0.0, "epochs": 1, "batch_tokens": 1, **warm_start}
    return dataclasses.replace(base, layout="window", warm_start=dataclasses.replace(base.warm_start, **settings))


def windows(count=6, observed=3):
    rng = np.random.default_rng(1)
    draw = lambda n: tuple(int(i) for i in rng.integers(5, VOCAB, n))  # noqa: E731
    turns = [
        Transition(draw(4), draw(3), (0.0,) * 3, draw(observed), (True,) * observed, "c", "o", "s", 0.0, True)
        for _ in range(count)
    ]
    return build_sequences([Trajectory(Task("t"), EpisodeId(0, 0, 0), tuple(turns), 0.0, 0.0, True)], "window")


def finite(policy):
    return all(bool(p.isfinite().all()) for p in policy.model.parameters())


def mean_action_loss(policy, sequences):
    """Cross-entropy of the action tokens by the model's own forward."""
    model, losses = copy.deepcopy(policy.model), []
    model.set_attn_implementation("eager")
    for q in sequences:
        with torch.no_grad():
            rows = torch.log_softmax(model(torch.tensor([q.ids])).logits[0].double(), -1)
        losses += [-rows[at - 1, q.ids[at]].item() for span in q.spans for at in range(*span.action)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("observed", "weight"), [(3, 1.0), (3, 0.0), (0, 1.0)])
def test_a_batch_without_an_imitated_action(policy, observed, weight):
    """Batches are single windows here, and most of them have an action that is not imitated."""
    sequences = windows(observed=observed)
    before = copy.deepcopy(policy.model.state_dict())
    seen = []
    loss = imitate(
        policy, sequences, [False, True, False, False, False, False], config(observation_weight=weight),
        lambda done, loss: seen.append(done),
    )  # fmt: skip
    assert seen == [1] * 6
    assert finite(policy)
    assert 3.0 < loss < 6.0  # about ln 60, of the one step with an action; the others do not count as 0
    assert any(not torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())


def test_nothing_to_imitate_at_all(policy):
    assert math.isnan(imitate(policy, windows(), [False] * 6, config(), lambda done, loss: None))
    assert finite(policy)


def test_the_reported_loss_is_the_actions_alone(policy):
    """As many action tokens as observation tokens, so that rows of both kinds weigh the same."""
    sequences = windows()
    expected = mean_action_loss(policy, sequences)
    got = imitate(policy, sequences, [True] * 6, config(batch_tokens=10**6), lambda done, loss: None)
    assert got == pytest.approx(expected, abs=1e-4)
