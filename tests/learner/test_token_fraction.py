"""--paw.token-fraction: unbiased, seeded, and nothing at 1."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from make_records import update
from selection_helpers import episodes, make_learner

from paw_fast.algorithms import world_model
from paw_fast.algorithms.world_model import WorldModelWeights
from paw_fast.config import validate
from paw_fast.errors import UserError
from paw_fast.learner import loss_rows, packing
from paw_fast.learner.forward_backward import backward
from paw_fast.learner.loss_rows import TokenSubset, build_tables, choose_tokens
from paw_fast.planning.workload import estimate
from paw_fast.types import Span, TokenSequence


def one_sequence():
    return TokenSequence(0, tuple(range(8)), (Span(0, (1, 2), (3, 4, 5, 6, 7), ()),))


ALL = WorldModelWeights(np.ones(1), np.array([True]), np.array([True]))


class Draws:
    """Random numbers that were written down, in place of a generator's."""

    def __init__(self, uniform, chosen=None):
        self.uniform, self.chosen = uniform, chosen

    def random(self):
        return self.uniform

    def choice(self, numbers, count, replace):
        assert not replace
        self.count = count
        return numbers[:count] if self.chosen is None else np.array(self.chosen, dtype=np.int64)


def test_the_number_drawn_has_the_mean_n_times_f(monkeypatch):
    for fraction, low in ((0.5, 2), (0.3, 1), (0.1, 0)):
        counts = []
        for i in range(1000):
            draws = Draws((i + 0.5) / 1000)
            monkeypatch.setattr(np.random, "default_rng", lambda _, draws=draws: draws)
            counts.append(int(choose_tokens([one_sequence()], ALL, fraction, (0,)).kept.sum()))
        assert set(counts) == {low, low + 1}
        assert np.mean(counts) == pytest.approx(5 * fraction, abs=1e-3)


def test_every_token_is_drawn_equally_often():
    draws = [choose_tokens([one_sequence()], ALL, 0.5, (0, step)).kept for step in range(4000)]
    assert np.mean(draws, axis=0) == pytest.approx(np.full(5, 0.5), abs=0.035)  # more than 4 standard deviations


def test_only_tokens_with_a_weight_are_drawn():
    sequences = [TokenSequence(i, (1, 2, 3, 4, 5), (Span(i, (1, 2), (2, 3, 4), ()),)) for i in range(3)]
    chosen = np.array([True, False, True])
    subset = choose_tokens(sequences, WorldModelWeights(np.array([1.0, 1.0, 0.0]), chosen, chosen), 0.999, (0,))
    assert subset.num_eligible == 3
    assert not subset.kept[3:].any()


def gradient(learner, batch, stats, weights, subset):
    learner.policy.model.zero_grad()
    on_device = world_model.token_weights(weights, batch.sequences, learner.policy.device)
    tables = build_tables(batch.sequences, stats, None, weights, subset=subset)
    live = [i for i, table in enumerate(tables) if len(table.positions)]
    if live:
        packed = packing.pack(batch.sequences, tables, live, learner.policy.device, on_device)
        backward(learner.policy, packed, learner.settings, 10**6)
    grads = [p.grad for p in learner.policy.model.parameters()]
    return torch.cat([
        (torch.zeros_like(p) if g is None else g).flatten().double()
        for p, g in zip(learner.policy.model.parameters(), grads, strict=True)
    ])  # fmt: skip


def test_the_expected_gradient_is_that_of_all_tokens():
    """All subsets of a small batch, each with its probability: floor(n f + u) tokens, each set of them alike."""
    learner = make_learner(loss="ce")
    batch = learner.make_batch(episodes(3, seed=5))
    stats = learner.compute_token_stats(batch)
    weights = world_model.select(batch, stats, learner.config, 0)
    whole = gradient(learner, batch, stats, weights, None)
    assert whole.abs().max() > 1e-3
    eligible = np.flatnonzero(choose_tokens(batch.sequences, weights, 1 - 1e-9, (0,)).kept)
    total = sum(len(span.observation) for q in batch.sequences for span in q.spans)
    n, fraction = len(eligible), 0.3
    assert 4 <= n <= 12
    low = int(n * fraction)
    probability = {low: 1 - (n * fraction - low), low + 1: n * fraction - low}
    mean = torch.zeros_like(whole)
    for count, share in probability.items():
        subsets = list(itertools.combinations(eligible, count))
        for chosen in subsets:
            kept = np.zeros(total, dtype=bool)
            kept[list(chosen)] = True
            mean += share / len(subsets) * gradient(learner, batch, stats, weights, TokenSubset(kept, n, fraction))
    torch.testing.assert_close(mean, whole, atol=1e-6, rtol=1e-4)


def test_the_draw_depends_on_seed_step_and_optimizer_step_alone():
    sequences = [one_sequence()]
    draw = lambda *seed: choose_tokens(sequences, ALL, 0.5, seed).kept.tolist()  # noqa: E731
    assert draw(0, 6, 3, 1) == draw(0, 6, 3, 1)
    assert len({tuple(draw(0, 6, step, number)) for step in range(5) for number in range(5)}) > 5


def test_updates_are_repeated_exactly_and_measured():
    def run(fraction):
        learner = make_learner(minibatches=2, token_fraction=fraction)
        batch = learner.make_batch(episodes())
        return [update(learner, batch, step=step) for step in range(2)], learner.policy.model.state_dict()

    (first, weights), (second, same) = run(0.4), run(0.4)
    assert first == second
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert first[0]["wm/token_share"] == pytest.approx(0.4, abs=0.1)
    everything, other = run(1.0)
    assert "wm/token_share" not in everything[0]
    assert any(not torch.equal(weights[name], other[name]) for name in weights)


def test_at_one_nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(loss_rows.np.random, "default_rng", lambda *_: pytest.fail("random numbers were drawn"))
    assert choose_tokens([one_sequence()], ALL, 1.0, (0,)) is None


def test_fewer_rows_are_computed_and_planned(monkeypatch):
    config = make_learner().config
    half = dataclasses.replace(config, paw=dataclasses.replace(config.paw, token_fraction=0.5))
    full, less = estimate(config), estimate(half)
    assert 2 * (less.rows - less.sampled) == pytest.approx(full.rows - full.sampled, abs=2)


@pytest.mark.parametrize("fraction", [0.0, 1.5, -0.1])
def test_other_fractions_are_refused(fraction):
    config = make_learner().config
    with pytest.raises(UserError, match=r"paw\.token-fraction"):
        validate(dataclasses.replace(config, paw=dataclasses.replace(config.paw, token_fraction=fraction)))
