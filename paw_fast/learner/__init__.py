"""Computes token statistics and updates the policy: sequences, loss rows, packing, losses, optimizer, critic."""

from paw_fast.learner.learner import Learner, join_groups

__all__ = ["Learner", "join_groups"]
