"""What the trainer's models say of the sampled tokens before the update; one record from scoring to the loss.

M transitions, A_m action tokens of transition m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Produced by `update.Learner.score`, consumed by credit, selection and the row tables.

    old_logprobs   M arrays [A_m]: of the policy that is about to be updated, at the sampling temperature
    ref_logprobs   the same of the reference policy, None where no KL is wanted
    values         the same of the critic, before each token, None without a critic
    entropies      [M]: mean full-vocabulary entropy over an action's tokens, nats
    importance     M arrays [A_m]: truncated importance weights of the rollouts, None where they are on-policy

    >>> Scores([np.zeros(2)], None, None, np.array([0.5])).entropies
    array([0.5])
    """

    old_logprobs: list[np.ndarray]
    ref_logprobs: list[np.ndarray] | None
    values: list[np.ndarray] | None
    entropies: np.ndarray
    importance: list[np.ndarray] | None = None

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        """Scores of consecutive batches as those of one."""

        def column(name: str) -> list[np.ndarray] | None:
            lists = [getattr(p, name) for p in parts]
            return None if any(x is None for x in lists) else [row for rows in lists for row in rows]

        return Scores(
            column("old_logprobs") or [], column("ref_logprobs"), column("values"),
            np.concatenate([p.entropies for p in parts]) if parts else np.zeros(0),
            column("importance") if parts else None,
        )  # fmt: skip
