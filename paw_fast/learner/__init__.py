"""Token statistics and the update: sequences, loss rows, packing, losses, optimizer, critic."""

from paw_fast.learner.learner import Learner, join_groups

__all__ = ["Learner", "join_groups"]
