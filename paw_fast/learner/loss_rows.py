"""Builds the row tables of an optimizer batch: which tokens have a loss, and with what weight.

S sequences, B trajectories, M transitions. Policy and world model have separate denominators, both over the whole
optimizer batch, so that a split into micro-batches changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paw_fast.algorithms.base import Credit
from paw_fast.algorithms.world_model import WorldModelWeights
from paw_fast.config import EnvConfig, RolloutConfig
from paw_fast.learner import packing
from paw_fast.learner.packing import RowTable
from paw_fast.types import TokenSequence, TokenStats


def longest_action(rollout: RolloutConfig, env: EnvConfig, layout: str) -> int:
    """Most action tokens that a sequence can hold: Dr. GRPO's constant (arXiv 2503.20783)."""
    return rollout.max_action_tokens * (env.max_steps if layout == "trajectory" else 1)


def action_weights(counts: Sequence[int], aggregation: str, longest: int) -> list[float]:
    """Weight of one action token in each of the S sequences with `counts` action tokens.

    `token-mean` 1 / sum(counts); `sequence-mean` 1 / (S_a * count), S_a counting the sequences that have any;
    `constant-length` 1 / (S_a * longest). Raises `ValueError` for another name.

    >>> action_weights([1, 3], "sequence-mean", 8)
    [0.5, 0.16666666666666666]
    """
    acting = max(1, sum(n > 0 for n in counts))
    if aggregation == "token-mean":
        return [1.0 / max(1, sum(counts))] * len(counts)
    if aggregation == "sequence-mean":
        return [1.0 / (acting * n) if n else 0.0 for n in counts]
    if aggregation == "constant-length":
        return [1.0 / (acting * longest)] * len(counts)
    raise ValueError(f"aggregation is {aggregation!r}, expected token-mean, sequence-mean or constant-length")


@dataclass(frozen=True)
class TokenSubset:
    """The observation tokens of an optimizer batch that have a row. Produced by `choose_tokens`, consumed by
    `build_tables`.

    kept [W] bool, among all observation tokens of the sequences; num_eligible: those that could have been drawn, each
    with probability `fraction`.

    >>> TokenSubset(np.array([True, False]), 2, 0.5).kept.sum()
    np.int64(1)
    """

    kept: np.ndarray
    num_eligible: int
    fraction: float


def choose_tokens(
    picked: Sequence[TokenSequence], world_model: WorldModelWeights, fraction: float, seed: Sequence[int]
) -> TokenSubset | None:
    """Draws the share `fraction` of the observation tokens whose weight is not zero, without replacement; None for 1.

    Of n tokens floor(n * fraction + u) are drawn, u uniform in [0, 1): each with probability `fraction` exactly, so
    that the loss with weights divided by it has the same expected gradient (Horvitz and Thompson, 1952).
    """
    if fraction == 1.0:
        return None
    parts = [
        np.full(len(span.observation), one)
        for q in picked for span, one in zip(q.spans, _eligible(q, world_model), strict=True)
    ]  # fmt: skip
    kept = np.zeros(sum(map(len, parts)), dtype=bool)
    numbers = np.flatnonzero(np.concatenate([kept[:0], *parts]))
    rng = np.random.default_rng(seed)
    count = int(len(numbers) * fraction + rng.random())
    kept[rng.choice(numbers, count, replace=False)] = True
    return TokenSubset(kept, len(numbers), fraction)


def build_tables(
    picked: Sequence[TokenSequence], stats: TokenStats, credit: Credit | None, world_model: WorldModelWeights | None,
    aggregation: str = "token-mean", longest: int = 1, subset: TokenSubset | None = None,
) -> list[RowTable]:  # fmt: skip
    """Row tables of the sequences of one optimizer batch.

    Policy rows weigh as `action_weights` says. World-model rows are those of the selected transitions whose lambda is
    not 0; their `sources` number the weights that `world_model.token_weights` computes for `picked` on the device. Of
    a `subset`, only its tokens have rows, and their weights are divided by its fraction. Trajectories outside
    `credit.policy_mask` have world-model rows only; without a credit there are no policy rows at all, without a world
    model no world-model rows.
    """
    counts = [_num_actions(q) if credit and credit.policy_mask[q.trajectory] else 0 for q in picked]
    weights = action_weights(counts, aggregation, longest)
    tables, first = [], 0
    for sequence, weight, count in zip(picked, weights, counts, strict=True):
        policy, observed = RowTable.empty(0), RowTable.empty(0)
        if credit and count:
            policy = _policy_rows(sequence, stats, credit, weight)
        if world_model:
            observed = _world_model_rows(sequence, world_model, first, subset)
            first += sum(len(span.observation) for span in sequence.spans)
        tables.append(packing.join_rows(policy, observed))
    return tables


def _world_model_rows(
    sequence: TokenSequence, world_model: WorldModelWeights, first: int, subset: TokenSubset | None
) -> RowTable:
    """first: number of the sequence's first observation token among all of the optimizer batch."""
    eligible = _eligible(sequence, world_model)
    rows = packing.observation_rows(sequence, [1.0 if one else 0.0 for one in eligible])
    sizes = [len(span.observation) for span in sequence.spans]
    chosen = np.flatnonzero(np.repeat(eligible, sizes))
    rows = dataclasses.replace(rows, sources=first + chosen)
    return rows if subset is None else packing.take_rows(rows, subset.kept[rows.sources], 1.0 / subset.fraction)


def _eligible(sequence: TokenSequence, world_model: WorldModelWeights) -> list[bool]:
    """For each span: whether its observation has a nonzero weight."""
    weighs = world_model.lambdas[sequence.trajectory] != 0
    return [bool(weighs and world_model.selected[span.transition]) for span in sequence.spans]


def _num_actions(sequence: TokenSequence) -> int:
    return sum(s.action[1] - s.action[0] for s in sequence.spans)


def _policy_rows(sequence: TokenSequence, stats: TokenStats, credit: Credit, weight: float) -> RowTable:
    rows = packing.action_rows(sequence)
    gather = lambda arrays: np.concatenate([arrays[s.transition] for s in sequence.spans])  # noqa: E731
    rows.weights[:] = weight
    rows.old_logprobs[:] = gather(stats.old_logprobs)
    rows.advantages[:] = gather(credit.advantages)
    if stats.ref_logprobs is not None:
        rows.ref_logprobs[:] = gather(stats.ref_logprobs)
    if stats.importance is not None:
        rows.importance[:] = gather(stats.importance)
    if credit.value_targets is not None:
        assert stats.values is not None
        return dataclasses.replace(
            rows, old_values=gather(stats.values).astype(np.float32), value_targets=gather(credit.value_targets)
        )
    return rows
