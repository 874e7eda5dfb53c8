"""Implements RLOO (arXiv 2402.14740): returns relative to the mean of the other episodes of the group."""

from __future__ import annotations

from dataclasses import dataclass

from paw_fast.algorithms.base import Algorithm, Credit, policy_mask, repeat_over_tokens
from paw_fast.algorithms.group_relative import GroupRelativeConfig, GroupReturns
from paw_fast.config.schema import AlgoName
from paw_fast.types import RolloutBatch, TokenStats


@dataclass(frozen=True)
class RlooConfig(GroupRelativeConfig):
    """Settings of RLOO."""

    name: AlgoName = "rloo"


class Rloo(Algorithm[RlooConfig]):
    """The advantage of every token of an episode is R - (mean return of the other episodes of the group)."""

    config = RlooConfig

    def credit(self, batch: RolloutBatch, stats: TokenStats) -> Credit:
        from paw_fast.algorithms.advantages import rloo_advantages

        advantages = GroupReturns.of(batch, stats, self.settings).advantages(rloo_advantages)
        return Credit(repeat_over_tokens(advantages.tolist(), stats), policy_mask(batch, self.settings))
