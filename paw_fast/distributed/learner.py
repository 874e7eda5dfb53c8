"""Updates a sharded policy on all ranks: each runs its share of the micro-batches, the rest is that of one rank.

All ranks get the whole batch, so that denominators, selected transitions, lambda and whitening are those of the whole
optimizer batch, computed by the code of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from paw_fast.config import TrainConfig
from paw_fast.distributed.balance import plan_ranks
from paw_fast.distributed.ranks import Ranks
from paw_fast.distributed.sharding import ShardedPolicy, shard_policy
from paw_fast.errors import UserError
from paw_fast.learner import Learner
from paw_fast.learner.memory_guard import MemoryGuard, T
from paw_fast.learner.seen_passages import SeenPassages
from paw_fast.learner.update_metrics import UpdateMetrics
from paw_fast.models.policy import Policy


class _NoRetries(MemoryGuard):
    """Lets lack of memory pass: the other ranks would not know that one begins again."""

    def run(self, compute: Callable[[], T], undo: Callable[[], object] = lambda: None) -> T:
        return compute()


class ShardedLearner(Learner):
    """A `Learner` on several ranks. Every rank calls the same methods with the same arguments."""

    policy: ShardedPolicy

    def __init__(
        self, ranks: Ranks, policy: Policy, reference: Policy | None, config: TrainConfig,
        max_tokens: int | None = None, seen_passages: SeenPassages | None = None,
    ):  # fmt: skip
        self.ranks = ranks
        mesh = ranks.mesh(config.trainer.replicate, policy.device)

        def shard(one: Policy, heads: Sequence[torch.nn.Module]) -> ShardedPolicy:
            return shard_policy(one, heads, mesh, trained=one is not reference)

        super().__init__(policy, reference, config, max_tokens, seen_passages, shard)
        self._memory = _NoRetries(self._memory.tokens, self._memory.chunk)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole weights, one after another. Every rank must take all of them."""
        return self.policy.whole_weights()

    def _plan(self, lengths: Sequence[int]) -> list[list[int]]:
        return plan_ranks(lengths, self.config.batch_tokens, self.ranks.size)[self.ranks.rank]

    def _join(self, columns: list[dict[int, np.ndarray]]) -> list[dict[int, np.ndarray]]:
        found: list[list[dict[int, np.ndarray]]] = self.ranks.all_gather(columns)
        merged: list[dict[int, Any]] = []
        for parts in zip(*found, strict=True):
            merged.append({number: value for part in parts for number, value in part.items()})
        return merged

    def _join_tokens(
        self, values: torch.Tensor, places: dict[int, np.ndarray]
    ) -> tuple[torch.Tensor, dict[int, np.ndarray]]:
        first, merged, parts = 0, {}, self.ranks.all_gather((values.cpu(), places))
        for part, numbers in parts:
            merged |= {transition: first + places for transition, places in numbers.items()}
            first += len(part)
        return torch.cat([part for part, _ in parts]).to(values.device), merged

    def _check_weights(self, step: int) -> None:
        try:
            super()._check_weights(step)
            found = ""
        except UserError as error:
            found = str(error)
        if wrong := [text for text in self.ranks.all_gather(found) if text]:
            raise UserError(wrong[0])

    def _join_metrics(self, metrics: UpdateMetrics) -> None:
        metrics.replace_parts(self.ranks.all_gather(metrics.parts()))
