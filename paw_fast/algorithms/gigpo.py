"""Implements GiGPO (arXiv 2505.10978): GRPO's advantage plus a step advantage among transitions from equal states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from paw_fast import registry
from paw_fast.algorithms.base import Algorithm, Credit, policy_mask, repeat_over_tokens
from paw_fast.algorithms.group_relative import GroupRelativeConfig, GroupReturns
from paw_fast.config import TrainConfig
from paw_fast.config.ranges import COEFFICIENT, Range
from paw_fast.config.schema import AlgoName
from paw_fast.errors import UserError
from paw_fast.types import RolloutBatch, TokenStats


@dataclass(frozen=True)
class GigpoConfig(GroupRelativeConfig):
    """Settings of GiGPO."""

    name: AlgoName = "gigpo"
    normalize_std: bool = True
    """Divide the episode advantage by the group's standard deviation, where --algo.step-normalize-std is on too."""
    gamma: Annotated[float, Range(0, 1)] = 0.95
    """Discount for each action of the rewards that follow an action (default from the verl-agent recipe)."""
    step_weight: Annotated[float, COEFFICIENT] = 1.0
    """Weight of the step advantage, which compares transitions that start from the same state, beside the advantage of
    the whole episode (default from the verl-agent recipe)."""
    step_normalize_std: bool = True
    """Divide both advantages by their groups' standard deviations, verl-agent's `mean_std_norm` (default from its
    ALFWorld recipe). Off is its `mean_norm`, which divides neither (its WebShop recipe)."""
    similarity: Annotated[float | None, Range(0, 1, open_low=True)] = None
    """Transitions count as starting from the same state (they form a step group, in the paper an anchor group) if the
    texts of their states are at least this similar (verl-agent: 0.9 on search); `None` requires equal texts."""
    anchor: Literal["state", "observation"] = "state"
    """The text of a state: the environment's whole state (ALFWorld: the observation and the admissible commands), or
    the observation alone (verl-agent)."""

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ("gamma", "step_weight", "step_normalize_std", "similarity")

    def check(self, config: TrainConfig) -> None:
        super().check(config)
        env = config.env.name
        if self.similarity is None and not registry.find("environments", env).has_state_text:
            raise UserError(
                f"--algo gigpo groups transitions by the text of the state, and --env {env} has none that repeats: "
                "give --algo.similarity (0.9) to group by similar texts, or take --algo grpo"
            )


class Gigpo(Algorithm[GigpoConfig]):
    """The advantage of a token is that of its episode plus `step_weight` times the step advantage of its transition."""

    config = GigpoConfig

    def credit(self, batch: RolloutBatch, stats: TokenStats) -> Credit:
        import torch

        from paw_fast.algorithms import advantages as formulas

        s = self.settings
        returns = GroupReturns.of(batch, stats, s)
        # verl-agent divides both parts by a standard deviation, or (its `mean_norm`) neither.
        divide = s.normalize_std and s.step_normalize_std
        of_episodes = returns.advantages(lambda r, groups: formulas.grpo_advantages(r, groups, divide))
        rewards, owners = torch.from_numpy(returns.rewards), torch.from_numpy(returns.owners)
        to_go = formulas.discounted_returns(rewards, owners, s.gamma).double() - torch.from_numpy(returns.penalties)
        anchors = [t.anchor_obs if s.anchor == "state" else t.previous_text for t in batch.transitions]
        groups = torch.from_numpy(np.asarray(returns.groups[returns.owners]))
        steps = formulas.step_groups(groups, anchors, s.similarity)
        both = formulas.gigpo_advantages(of_episodes, to_go, steps, s.step_weight, s.step_normalize_std)
        return Credit(repeat_over_tokens(both.tolist(), stats), policy_mask(batch, s))
