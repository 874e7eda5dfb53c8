"""Splits an optimizer batch among ranks by tokens."""

from __future__ import annotations

from collections.abc import Sequence

from paw_fast.learner.packing import plan_micro_batches


def split_by_tokens(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Assigns sequences to ranks, the longest first, each to the rank with the fewest tokens (the LPT rule: the largest
    share is at most 4/3 of the best possible one, Graham 1969). Deterministic. Returns a list of indices for each rank.

    >>> split_by_tokens([5, 9, 4, 1], 2)
    [[1, 3], [0, 2]]
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = min(range(ranks), key=lambda r: (tokens[r], len(shares[r]), r))
        shares[rank].append(index)
        tokens[rank] += lengths[index]
    return [sorted(share) for share in shares]


def plan_ranks(lengths: Sequence[int], token_budget: int, ranks: int) -> list[list[list[int]]]:
    """The micro-batches of each rank, as lists of sequences: equally many on all, so that their collectives match. A
    rank that needs fewer runs empty ones at the end.

    >>> plan_ranks([6, 6, 6], 10, 2)
    [[[0], [2]], [[1], []]]
    """
    plans = []
    for share in split_by_tokens(lengths, ranks):
        found = plan_micro_batches([lengths[i] for i in share], token_budget)
        plans.append([[share[i] for i in members] for members in found])
    most = max(map(len, plans))
    return [plan + [[] for _ in range(most - len(plan))] for plan in plans]
