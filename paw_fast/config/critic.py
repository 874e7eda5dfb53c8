"""Defines the settings of the critic. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from paw_fast.config.ranges import LEARNING_RATE, POSITIVE, Range


@dataclass(frozen=True)
class CriticConfig:
    """The critic, for algorithms that learn a value function."""

    backbone: Literal["own", "shared", "none"] = "own"
    """Where the value head is: on a copy of the policy of its own (default from the verl-agent recipe), or on the
    policy's hidden states (`shared`). `none` cannot be used with an algorithm that needs a critic."""
    learning_rate: Annotated[float, LEARNING_RATE] = 1e-5
    """Learning rate of the critic, or of the value head on a shared backbone (default from the verl-agent recipe).
    Constant: --optim.schedule is the policy's."""
    gamma: Annotated[float, Range(0, 1)] = 1.0
    """Discount for each action token (default from verl)."""
    lam: Annotated[float, Range(0, 1)] = 1.0
    """Lambda of generalized advantage estimation (GAE), for each action token (default from verl)."""
    gae_over: Literal["trajectory", "transition"] = "trajectory"
    """GAE over the action tokens of the whole trajectory, or (verl-agent) inside each transition, whose reward then is
    the return of the whole episode."""
    value_clip: Annotated[float | None, POSITIVE] = 0.5
    """Largest distance of a value from its old one in the clipped value loss (default from verl); `None` turns it
    off."""
    coef: Annotated[float, POSITIVE] = 0.1
    """Weight of the value loss beside the policy loss, on a shared backbone (our choice)."""
    warmup_steps: Annotated[int, Range(0, 1 << 30)] = 0
    """First training steps, in which the critic learns and the policy does not (default from the verl-agent recipe)."""
    whiten: bool = True
    """Normalize the advantages over the tokens of the batch: (A - mean) / sqrt(var + 1e-8), as verl does."""
