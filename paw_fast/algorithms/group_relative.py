"""Computes the episode advantages of the algorithms that compare the episodes of a group: GRPO, RLOO and GiGPO.

B trajectories, M transitions. Imports torch inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from paw_fast.algorithms.base import token_kl, transition_rewards
from paw_fast.config import AlgoConfig, TrainConfig
from paw_fast.errors import UserError
from paw_fast.types import RolloutBatch, TokenStats

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GroupRelativeConfig(AlgoConfig):
    """Settings of algorithms that compare the episodes of a group."""

    statistics: Literal["episode", "step"] = "episode"
    """Mean and standard deviation of a group over its episodes, or (verl-agent) over their transitions, where longer
    episodes weigh more."""

    def check(self, config: TrainConfig) -> None:
        if config.rollout.group_size < 2:
            raise UserError(
                f"--rollout.group-size is {config.rollout.group_size}, expected 2 or more with --algo {self.name} (it "
                "compares episodes of one task)"
            )
        if self.penalty_in == "row" and self.statistics == "episode":
            raise UserError(
                "--algo.penalty-in row takes the penalty from single transitions, so the group's statistics must be "
                "over them too: add --algo.statistics step"
            )


@dataclass(frozen=True)
class GroupReturns:
    """The returns of a batch, to be compared inside each group. Created by `of`.

    rewards     [M] rewards of the transitions; the KL is subtracted if the statistics are over episodes
    penalties   [M] to subtract from the returns of single transitions
    deductions  [M] the penalties, plus the KL if the statistics are over transitions
    owners [M], groups [B]; over_transitions: whether the statistics are over transitions
    """

    rewards: np.ndarray
    penalties: np.ndarray
    deductions: np.ndarray
    owners: np.ndarray
    groups: np.ndarray
    over_transitions: bool

    @classmethod
    def of(cls, batch: RolloutBatch, stats: TokenStats, settings: GroupRelativeConfig) -> GroupReturns:
        """Computes the returns of a batch. The KL of all transitions is subtracted from the return of their episode, or
        with statistics over transitions, from the return of each transition."""
        rewards, penalties = transition_rewards(batch, settings)
        kl = np.array([float(k.sum()) for k in token_kl(stats, settings)])
        over_transitions = settings.statistics == "step"
        if not over_transitions:
            rewards, kl = rewards - kl, np.zeros(len(kl))
        return cls(rewards, penalties, penalties + kl, batch.owners, batch.groups, over_transitions)

    def advantages(self, compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Returns the advantage [M] of each transition's episode. `compare` maps returns [N] and groups [N] to them."""
        import torch

        returns = np.bincount(self.owners, weights=self.rewards, minlength=len(self.groups))
        if self.over_transitions:
            values = torch.from_numpy(returns[self.owners] - self.deductions)
            return compare(values, torch.from_numpy(self.groups[self.owners]))
        return compare(torch.from_numpy(returns), torch.from_numpy(self.groups))[torch.from_numpy(self.owners)]
