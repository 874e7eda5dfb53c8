"""Reinforcement-learning algorithms, and the selection of transitions for the world-model loss.

The exported names are those that a custom algorithm needs; see docs/howto/add_algorithm.md.
"""

from paw_fast.algorithms.base import (
    Algorithm,
    Credit,
    has_reward_variance,
    policy_mask,
    repeat_over_tokens,
    token_kl,
    transition_rewards,
)

__all__ = [
    "Algorithm",
    "Credit",
    "has_reward_variance",
    "policy_mask",
    "repeat_over_tokens",
    "token_kl",
    "transition_rewards",
]
