"""Implements GRPO (arXiv 2402.03300): returns relative to the other episodes of the group."""

from __future__ import annotations

from dataclasses import dataclass

from paw_fast.algorithms.base import Algorithm, Credit, policy_mask, repeat_over_tokens
from paw_fast.algorithms.group_relative import GroupRelativeConfig, GroupReturns
from paw_fast.config.schema import AlgoName
from paw_fast.types import RolloutBatch, TokenStats


@dataclass(frozen=True)
class GrpoConfig(GroupRelativeConfig):
    """Settings of GRPO."""

    name: AlgoName = "grpo"
    normalize_std: bool = True
    """Divide by the group's standard deviation; off is Dr. GRPO."""


class Grpo(Algorithm[GrpoConfig]):
    """The advantage of every token of an episode is (R - mean) / std of its return R in the group."""

    config = GrpoConfig

    def credit(self, batch: RolloutBatch, stats: TokenStats) -> Credit:
        from paw_fast.algorithms.advantages import grpo_advantages

        returns = GroupReturns.of(batch, stats, self.settings)
        advantages = returns.advantages(lambda r, groups: grpo_advantages(r, groups, self.settings.normalize_std))
        return Credit(repeat_over_tokens(advantages.tolist(), stats), policy_mask(batch, self.settings))
