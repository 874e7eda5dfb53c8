"""Builds the row tables of an optimizer batch: which tokens have a loss, and with what weight.

S sequences, B trajectories, M transitions. Policy and world model have separate denominators, both over the whole
optimizer batch, so that a split into micro-batches changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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


def build_tables(
    picked: Sequence[TokenSequence], stats: TokenStats, credit: Credit | None, world_model: WorldModelWeights | None,
    aggregation: str = "token-mean", longest: int = 1,
) -> list[RowTable]:  # fmt: skip
    """Row tables of the sequences of one optimizer batch.

    Policy rows weigh as `action_weights` says; world-model rows weigh lambda / N_WM, where N_WM counts the selected
    observation tokens of the batch. Trajectories outside `credit.policy_mask` have world-model rows only; without a
    credit there are no policy rows at all, without a world model no world-model rows.
    """
    counts = [_num_actions(q) if credit and credit.policy_mask[q.trajectory] else 0 for q in picked]
    weights = action_weights(counts, aggregation, longest)
    num_observed = 0
    if world_model:
        num_observed = sum(len(s.observation) for q in picked for s in q.spans if world_model.selected[s.transition])
    tables = []
    for sequence, weight, count in zip(picked, weights, counts, strict=True):
        policy, observed = RowTable.empty(0), RowTable.empty(0)
        if credit and count:
            policy = _policy_rows(sequence, stats, credit, weight)
        if world_model:
            scale = float(world_model.lambdas[sequence.trajectory]) / max(1, num_observed)
            scales = [scale * bool(world_model.selected[s.transition]) for s in sequence.spans]
            observed = packing.observation_rows(sequence, scales)
        tables.append(packing.join_rows(policy, observed))
    return tables


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
