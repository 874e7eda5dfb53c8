"""Implements PPO (arXiv 1707.06347) with a critic and generalized advantage estimation over action tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paw_fast.algorithms.base import Algorithm, Credit, policy_mask, token_kl, transition_rewards
from paw_fast.config import AlgoConfig, TrainConfig
from paw_fast.config.schema import AlgoName
from paw_fast.errors import UserError
from paw_fast.types import RolloutBatch, TokenStats


@dataclass(frozen=True)
class PpoConfig(AlgoConfig):
    """Settings of PPO. Those of its critic are in the table `critic`."""

    name: AlgoName = "ppo"

    def check(self, config: TrainConfig) -> None:
        if config.critic.backbone == "none":
            raise UserError("--algo ppo needs a critic, and --critic.backbone is none: say own or shared")
        if self.dynamic_sampling:
            raise UserError(
                "--algo.dynamic-sampling drops groups whose episodes cannot be compared, and PPO compares none: leave "
                "it out"
            )


class Ppo(Algorithm[PpoConfig]):
    """The advantage of a token depends on the critic's values before and after it."""

    config = PpoConfig
    needs_critic = True

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.critic = config.critic

    def credit(self, batch: RolloutBatch, stats: TokenStats) -> Credit:
        """Computes GAE over the tokens of each trajectory or transition. The last token of a transition receives its
        reward; the KL of each token is subtracted from the reward of that token."""
        import torch

        from paw_fast.algorithms.advantages import gae, whiten

        assert stats.values is not None
        rewards, penalties = transition_rewards(batch, self.settings)
        over = batch.owners
        if self.critic.gae_over == "transition":  # each has the return of its episode
            rewards = np.bincount(over, weights=rewards, minlength=len(batch.trajectories))[over]
            over = np.arange(len(over))
        sizes = np.array([len(v) for v in stats.values])
        ends = np.cumsum(sizes)
        of_tokens = -np.concatenate(token_kl(stats, self.settings))
        of_tokens[ends - 1] += rewards - penalties
        advantages, targets = gae(
            torch.from_numpy(of_tokens), torch.from_numpy(np.concatenate(stats.values)),
            torch.from_numpy(np.repeat(over, sizes)), self.critic.gamma, self.critic.lam,
        )  # fmt: skip
        if self.critic.whiten:
            advantages = whiten(advantages)
        split = lambda x: np.split(x.numpy(), ends[:-1])  # noqa: E731
        return Credit(split(advantages), policy_mask(batch, self.settings), split(targets))
