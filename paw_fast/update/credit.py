"""Credit: what every action token is worth, by the algorithm of the config. The formulas are in `advantages`.

    trajectories + scores -> rewards of the transitions -> returns -> advantages of the tokens (and value targets)

B trajectories, M transitions (trajectory after trajectory), A_m action tokens of transition m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paw_fast import advantages as maths
from paw_fast.config import AlgoConfig, CriticConfig
from paw_fast.scores import Scores
from paw_fast.types import Trajectory


@dataclass(frozen=True)
class Credit:
    """What the policy and the critic learn from. Produced by `assign_credit`, consumed by the update.

    advantages     M arrays [A_m] float32
    value_targets  M arrays [A_m] float32, PPO only
    in_policy      [B] bool: False leaves the trajectory out of the policy loss (dynamic sampling)

    >>> Credit([np.zeros(2, np.float32)], None, np.array([True])).in_policy
    array([ True])
    """

    advantages: list[np.ndarray]
    value_targets: list[np.ndarray] | None
    in_policy: np.ndarray


def transition_rewards(
    trajectories: Sequence[Trajectory], scores: Scores, algo: AlgoConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [M] with penalties where `algo` puts them there, and the penalties [M] that are left for the rows.

    With the KL in the reward, a transition also pays kl_coef * sum(old - ref) over its action tokens (the k1
    estimate, as verl's `kl_penalty`).
    """
    turns = [t for trajectory in trajectories for t in trajectory.transitions]
    penalties = np.array([0.0 if t.valid else algo.invalid_penalty for t in turns])
    rewards = np.array([t.reward for t in turns], dtype=np.float64)
    rest = np.zeros(len(turns))
    if algo.penalty_in == "row":
        rewards, rest = rewards + penalties, penalties
    if algo.kl_in == "reward" and algo.kl_coef:
        assert scores.ref_logprobs is not None
        pairs = zip(scores.old_logprobs, scores.ref_logprobs, strict=True)
        rewards = rewards - algo.kl_coef * np.array([float((old - ref).sum()) for old, ref in pairs])
    return rewards, rest


def has_spread(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """[B] bool: whether the trajectory's group holds different returns, penalties left out (DAPO's filter)."""
    groups = np.array([t.group for t in trajectories])
    returns = np.array([t.success_return for t in trajectories])
    mixed = {g for g in set(groups.tolist()) if np.ptp(returns[groups == g]) > 1e-9}
    return np.array([g in mixed for g in groups.tolist()])


def assign_credit(trajectories: Sequence[Trajectory], scores: Scores, algo: AlgoConfig, critic: CriticConfig) -> Credit:
    """Advantages of every action token by `algo.name`; with PPO the critic's targets too."""
    counts = np.array([len(t.transitions) for t in trajectories])
    owner = np.repeat(np.arange(len(trajectories)), counts)
    rewards, row_penalties = transition_rewards(trajectories, scores, algo)
    in_policy = has_spread(trajectories) if algo.dynamic_sampling else np.ones(len(trajectories), dtype=bool)
    if algo.name == "ppo":
        if critic.gae_over == "transition":
            paid = np.bincount(owner, weights=rewards, minlength=len(trajectories))[owner] - row_penalties
            advantages, targets = _gae(paid, np.arange(len(owner)), scores, critic)
        else:
            advantages, targets = _gae(rewards - row_penalties, owner, scores, critic)
        return Credit(advantages, targets, in_policy)
    of_episodes = np.array([t.group for t in trajectories])
    groups = of_episodes[owner]
    returns = np.bincount(owner, weights=rewards, minlength=len(trajectories))
    per_row = _episode_advantages(returns, row_penalties, of_episodes, owner, algo)
    if algo.name == "gigpo":
        to_go = maths.discounted_returns(torch.from_numpy(rewards), torch.from_numpy(owner), algo.gamma)
        anchors = [t.anchor_obs for trajectory in trajectories for t in trajectory.transitions]
        steps = maths.step_groups(torch.from_numpy(groups), anchors, algo.similarity)
        to_go = to_go.double() - torch.from_numpy(row_penalties)
        per_row = maths.gigpo_advantages(per_row, to_go, steps, algo.step_weight, algo.step_normalize_std)
    sizes = [len(old) for old in scores.old_logprobs]
    return Credit([np.full(n, a, np.float32) for n, a in zip(sizes, per_row.tolist(), strict=True)], None, in_policy)


def _episode_advantages(returns, row_penalties, groups, owner, algo: AlgoConfig) -> torch.Tensor:
    """The episode part [M] of the group-relative algorithms: over episodes, or (verl-agent) over their rows."""
    per_step = algo.statistics == "step"
    values = torch.from_numpy(returns[owner] - row_penalties if per_step else returns)
    where = torch.from_numpy(groups[owner] if per_step else groups)
    if algo.name == "rloo":
        advantages = maths.rloo_advantages(values, where)
    else:
        advantages = maths.grpo_advantages(values, where, algo.normalize_std)
    return advantages if per_step else advantages[torch.from_numpy(owner)]


def _gae(
    rewards: np.ndarray, owner: np.ndarray, scores: Scores, critic: CriticConfig
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """GAE over the action tokens of each `owner` [M]; a transition's reward [M] stands on its last token."""
    assert scores.values is not None
    sizes = np.array([len(v) for v in scores.values])
    ends = np.cumsum(sizes)
    flat = np.zeros(int(ends[-1]))
    flat[ends - 1] = rewards
    values = torch.from_numpy(np.concatenate(scores.values))
    advantages, targets = maths.gae(
        torch.from_numpy(flat), values, torch.from_numpy(np.repeat(owner, sizes)), critic.gamma, critic.lam
    )
    if critic.whiten:
        advantages = maths.whiten(advantages)
    split = lambda x: np.split(x.numpy(), ends[:-1])  # noqa: E731
    return split(advantages), split(targets)
