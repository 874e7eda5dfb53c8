"""The update: scoring, credit, row tables, optimizer steps. `Learner` is the whole of it."""

from paw_fast.learner.learner import Learner

__all__ = ["Learner"]
