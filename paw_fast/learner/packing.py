"""Packs sequences of different lengths into micro-batches without padding, and lists the rows that have a loss.

T packed tokens, N rows. A row predicts the token at one position from the hidden state one position earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paw_fast.kernels import IGNORED, POLICY, WORLD_MODEL, LossRows
from paw_fast.types import TokenSequence


@dataclass(frozen=True)
class RowTable:
    """The loss rows of one sequence, ordered by position. Produced by `loss_rows`, consumed by `pack`.

    positions [n] of the predicted tokens; kinds [n] (IGNORED, POLICY, WORLD_MODEL); weights [n] fold in the
    denominators and lambda; sources [n], where not -1, number the weight on the device by which a row's weight is
    multiplied (`pack`); old_logprobs, ref_logprobs, advantages, importance [n] and the critic's old_values and
    value_targets [n] are used on policy rows only.

    >>> RowTable.empty(2).weights.tolist()
    [0.0, 0.0]
    """

    positions: np.ndarray
    kinds: np.ndarray
    weights: np.ndarray
    old_logprobs: np.ndarray
    ref_logprobs: np.ndarray
    advantages: np.ndarray
    old_values: np.ndarray
    value_targets: np.ndarray
    importance: np.ndarray
    sources: np.ndarray

    @classmethod
    def empty(cls, n: int) -> RowTable:
        zeros = (np.zeros(n, dtype=np.float32) for _ in range(6))
        return cls(
            np.zeros(n, np.int64), np.full(n, IGNORED, np.uint8), *zeros, importance=np.ones(n, np.float32),
            sources=np.full(n, -1, np.int64),
        )  # fmt: skip


@dataclass(frozen=True)
class ValueRows:
    """The critic's rows of a micro-batch: index [K] of the policy rows among its N rows, the rest [K] float32.

    Produced by `PackedBatch.value_rows`, consumed by the critic's loss.
    """

    index: torch.Tensor
    weights: torch.Tensor
    old_values: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch. `members` are indices of the sequences in it, in packing order.

    input_ids, position_ids [T]; lengths sum to T; row_tokens [N] index the hidden state a row reads.

    Produced by `pack`, consumed by `forward_backward`.
    """

    members: tuple[int, ...]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]
    row_tokens: torch.Tensor
    row_counts: tuple[int, ...]
    rows: LossRows
    old_values: torch.Tensor
    value_targets: torch.Tensor

    def value_rows(self) -> ValueRows:
        """Returns the rows of the critic: those of action tokens."""
        index = (self.rows.kinds == POLICY).nonzero()[:, 0]
        return ValueRows(index, self.rows.weights[index], self.old_values[index], self.value_targets[index])


def plan_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Assigns sequences to micro-batches by first-fit on decreasing lengths; deterministic. Returns lists of indices.

    A sequence longer than the budget is a micro-batch by itself. Takes O(S log S) for S sequences.

    >>> plan_micro_batches([5, 9, 4, 1], 10)
    [[1, 3], [0, 2]]
    """
    batches: list[list[int]] = []
    # A binary tree of the most room in a range of micro-batches, node 1 the root, those not yet begun included.
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    room = [token_budget] * (2 * leaves)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length, node = lengths[index], 1
        if room[1] >= length:
            while node < leaves:
                node = 2 * node if room[2 * node] >= length else 2 * node + 1
        else:
            node = leaves + len(batches)
        if node - leaves == len(batches):
            batches.append([])
        batches[node - leaves].append(index)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return batches


def input_length(table: RowTable) -> int:
    """Returns the number of tokens to compute: those before the last predicted token, which is only a target."""
    return int(table.positions.max()) if len(table.positions) else 0


def action_rows(sequence: TokenSequence) -> RowTable:
    """Returns the policy rows of a sequence, without weights."""
    positions = [np.arange(*span.action) for span in sequence.spans]
    table = RowTable.empty(sum(map(len, positions)))
    table.positions[:] = np.concatenate(positions) if positions else 0
    table.kinds[:] = POLICY
    return table


def observation_rows(sequence: TokenSequence, weights: Sequence[float]) -> RowTable:
    """Returns the world-model rows of the spans with a nonzero weight (one weight per span); without `sources`."""
    chosen = [(span.observation, w) for span, w in zip(sequence.spans, weights, strict=True) if w != 0]
    table = RowTable.empty(sum(len(p) for p, _ in chosen))
    if chosen:
        table.positions[:] = np.concatenate([np.asarray(p, np.int64) for p, _ in chosen])
        table.weights[:] = np.concatenate([np.full(len(p), w, np.float32) for p, w in chosen])
    table.kinds[:] = WORLD_MODEL
    return table


def take_rows(table: RowTable, mask: np.ndarray, factor: float) -> RowTable:
    """Returns the rows of `mask` [n], with their weights multiplied by `factor`."""
    taken = RowTable(*(getattr(table, name)[mask] for name in RowTable.__dataclass_fields__))
    taken.weights[:] *= np.float32(factor)
    return taken


def join_rows(*tables: RowTable) -> RowTable:
    """Concatenates the tables of a sequence."""
    return RowTable(*(np.concatenate([getattr(t, f) for t in tables]) for f in RowTable.__dataclass_fields__))


def pack(
    sequences: Sequence[TokenSequence], tables: Sequence[RowTable], members: Sequence[int], device: torch.device,
    token_weights: torch.Tensor | None = None,
) -> PackedBatch:  # fmt: skip
    """Packs the sequences `members` and their rows into a micro-batch on `device`. Each must have at least one row.

    token_weights: fp32 on `device`, to which the rows' `sources` refer; the host never reads them.
    """
    picked = [(np.asarray(sequences[i].ids, dtype=np.int64), tables[i]) for i in members]
    lengths = [input_length(t) for _, t in picked]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    ids = np.concatenate([s[:n] for (s, _), n in zip(picked, lengths, strict=True)])
    targets = np.concatenate([s[t.positions] for s, t in picked])
    readers = np.concatenate([start + t.positions - 1 for start, (_, t) in zip(starts, picked, strict=True)])
    column = lambda name: np.concatenate([getattr(t, name) for _, t in picked])  # noqa: E731
    importance = column("importance")
    move = lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)  # noqa: E731
    weights, sources = move(column("weights")), column("sources")
    if (sources >= 0).any():
        assert token_weights is not None, "rows refer to weights on the device, which are missing"
        factors = token_weights[move(np.maximum(sources, 0))]
        weights = torch.where(move(sources >= 0), weights * factors, weights)
    return PackedBatch(
        members=tuple(members),
        input_ids=move(ids),
        position_ids=move(np.concatenate([np.arange(n) for n in lengths])),
        lengths=tuple(lengths),
        row_tokens=move(readers),
        row_counts=tuple(len(t.positions) for _, t in picked),
        rows=LossRows(
            targets=move(targets), kinds=move(column("kinds")), weights=weights,
            old_logprobs=move(column("old_logprobs")), ref_logprobs=move(column("ref_logprobs")),
            advantages=move(column("advantages")), importance=None if (importance == 1).all() else move(importance),
        ),
        old_values=move(column("old_values")),
        value_targets=move(column("value_targets")),
    )  # fmt: skip
