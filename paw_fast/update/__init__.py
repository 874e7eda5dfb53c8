"""The update: scoring, credit, row tables, optimizer steps. `Learner` is the whole of it."""

from paw_fast.update.learner import Learner

__all__ = ["Learner"]
