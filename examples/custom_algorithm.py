"""An algorithm in a file of your own: REINFORCE++ (arXiv 2501.03262), which normalizes returns over the whole batch.

Run `paw-fast train --algo custom_algorithm:ReinforcePlusPlus` in the folder of this file.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from paw_fast.algorithms import Algorithm, Credit, policy_mask, repeat_over_tokens, token_kl, transition_rewards
from paw_fast.algorithms.advantages import discounted_returns, whiten
from paw_fast.config import AlgoConfig
from paw_fast.config.ranges import Range


@dataclass(frozen=True)
class Config(AlgoConfig):
    """Settings of REINFORCE++, beside those that all algorithms have."""

    gamma: Annotated[float, Range(0, 1)] = 1.0
    """Discount of the return, for each step."""


class ReinforcePlusPlus(Algorithm[Config]):
    """An action token's advantage is its transition's return-to-go, normalized over the batch's tokens."""

    config = Config

    def credit(self, batch, stats):
        # A transition's reward, less the penalty and the KL that the settings take from it.
        rewards, penalties = transition_rewards(batch, self.settings)
        rewards = rewards - penalties - [kl.sum() for kl in token_kl(stats, self.settings)]
        returns = discounted_returns(torch.tensor(rewards), torch.tensor(batch.owners), self.settings.gamma)
        # M arrays, of the action tokens of each transition.
        of_tokens = repeat_over_tokens(returns.tolist(), stats)
        normalized = whiten(torch.tensor(np.concatenate(of_tokens))).numpy()
        advantages = np.split(normalized, np.cumsum([len(one) for one in of_tokens])[:-1])
        return Credit(advantages, policy_mask(batch, self.settings))
