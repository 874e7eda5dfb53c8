"""Detects training steps without effect, in which no gradient is finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_IN_A_ROW = 3
"""Training steps in a row whose optimizer steps may all be skipped; the run stops at the last of them."""


@dataclass
class SkippedSteps:
    """Counts training steps whose optimizer steps were all skipped, and keeps the state from before the first of them.

    >>> watch = SkippedSteps()
    >>> watch.add(step=7, skipped=1, attempted=4, before=None)
    'warning: step 7: 1 of 4 optimizer steps were left out, their gradients were not finite'
    >>> watch.in_a_row, watch.too_many
    (0, False)
    """

    in_a_row: int = 0
    good_state: dict[str, Any] | None = None

    def add(self, step: int, skipped: int, attempted: int, before: dict[str, Any] | None) -> str:
        """Counts a training step; returns a warning, or an empty string if no optimizer step was skipped.

        before: the run's state before the step; None if `in_a_row` is not 0.
        """
        if not skipped or skipped < attempted:
            self.in_a_row, self.good_state = 0, None
        else:
            self.in_a_row += 1
            self.good_state = self.good_state or before
        if not skipped:
            return ""
        return (
            f"warning: step {step}: {skipped} of {attempted} optimizer steps were left out, their gradients were not "
            "finite"
        )

    @property
    def too_many(self) -> bool:
        """Whether the run has to stop."""
        return self.in_a_row >= MAX_IN_A_ROW
