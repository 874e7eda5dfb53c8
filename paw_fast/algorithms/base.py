"""Credit: what every action token is worth, by the algorithm of the config. The formulas are in `advantages`.

    trajectories + scores -> rewards of the transitions -> returns -> advantages of the tokens (and value targets)

B trajectories, M transitions (trajectory after trajectory), A_m action tokens of transition m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paw_fast.algorithms import advantages as maths
from paw_fast.config import AlgoConfig, CriticConfig
from paw_fast.types import TokenStats, Trajectory


@dataclass(frozen=True)
class Credit:
    """What the policy and the critic learn from. Produced by `assign_credit`, consumed by the update.

    advantages     M arrays [A_m] float32
    value_targets  M arrays [A_m] float32, PPO only
    policy_mask      [B] bool: False leaves the trajectory out of the policy loss (dynamic sampling)

    >>> Credit([np.zeros(2, np.float32)], None, np.array([True])).policy_mask
    array([ True])
    """

    advantages: list[np.ndarray]
    value_targets: list[np.ndarray] | None
    policy_mask: np.ndarray


def transition_rewards(trajectories: Sequence[Trajectory], algo: AlgoConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [M] with penalties where `algo` puts them there, and the penalties [M] that are left for the rows."""
    turns = [t for trajectory in trajectories for t in trajectory.transitions]
    penalties = np.array([0.0 if t.valid else algo.invalid_penalty for t in turns])
    rewards = np.array([t.reward for t in turns], dtype=np.float64)
    rest = np.zeros(len(turns))
    if algo.penalty_in == "row":
        rewards, rest = rewards + penalties, penalties
    return rewards, rest


def token_kl(scores: TokenStats, algo: AlgoConfig) -> list[np.ndarray]:
    """M arrays [A_m]: what each action token pays with the KL in the reward, kl_coef * (old - ref); else zeros.

    That is the k1 estimate of verl's `apply_kl_penalty`, which takes it from the reward of each token.
    """
    if algo.kl_in != "reward" or not algo.kl_coef:
        return [np.zeros(len(old)) for old in scores.old_logprobs]
    assert scores.ref_logprobs is not None
    pairs = zip(scores.old_logprobs, scores.ref_logprobs, strict=True)
    return [algo.kl_coef * (np.asarray(old, np.float64) - ref) for old, ref in pairs]


def has_reward_variance(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """[B] bool: whether the trajectory's group holds different returns, penalties left out (DAPO's filter)."""
    groups = np.array([t.group for t in trajectories])
    returns = np.array([t.success_return for t in trajectories])
    mixed = {g for g in set(groups.tolist()) if np.ptp(returns[groups == g]) > 1e-9}
    return np.array([g in mixed for g in groups.tolist()])


def assign_credit(
    trajectories: Sequence[Trajectory], scores: TokenStats, algo: AlgoConfig, critic: CriticConfig
) -> Credit:
    """Advantages of every action token by `algo.name`; with PPO the critic's targets too."""
    counts = np.array([len(t.transitions) for t in trajectories])
    owner = np.repeat(np.arange(len(trajectories)), counts)
    rewards, row_penalties = transition_rewards(trajectories, algo)
    kl = token_kl(scores, algo)
    policy_mask = has_reward_variance(trajectories) if algo.dynamic_sampling else np.ones(len(trajectories), dtype=bool)
    if algo.name == "ppo":
        if critic.gae_over == "transition":
            paid = np.bincount(owner, weights=rewards, minlength=len(trajectories))[owner] - row_penalties
            advantages, targets = _gae(paid, kl, np.arange(len(owner)), scores, critic)
        else:
            advantages, targets = _gae(rewards - row_penalties, kl, owner, scores, critic)
        return Credit(advantages, targets, policy_mask)
    row_kl = np.array([float(k.sum()) for k in kl])
    if algo.statistics == "episode":  # an episode pays its KL, a step's return-to-go that of what follows
        rewards, row_kl = rewards - row_kl, np.zeros(len(row_kl))
    groups = np.array([t.group for t in trajectories])
    returns = np.bincount(owner, weights=rewards, minlength=len(trajectories))
    per_row = _episode_advantages(returns, row_penalties + row_kl, groups, owner, algo)
    if algo.name == "gigpo":
        to_go = maths.discounted_returns(torch.from_numpy(rewards), torch.from_numpy(owner), algo.gamma)
        anchors = [t.anchor_obs for trajectory in trajectories for t in trajectory.transitions]
        steps = maths.step_groups(torch.from_numpy(groups[owner]), anchors, algo.similarity)
        to_go = to_go.double() - torch.from_numpy(row_penalties)
        per_row = maths.gigpo_advantages(per_row, to_go, steps, algo.step_weight, algo.step_normalize_std)
    sizes = [len(old) for old in scores.old_logprobs]
    return Credit([np.full(n, a, np.float32) for n, a in zip(sizes, per_row.tolist(), strict=True)], None, policy_mask)


def _episode_advantages(returns, off_rows, groups, owner, algo: AlgoConfig) -> torch.Tensor:
    """The episode part [M] of the group-relative algorithms: over episodes, or (verl-agent) over their rows.

    returns, groups [B]; owner [M]; off_rows [M] is taken from single rows, with the statistics over them alone.
    """
    per_step = algo.statistics == "step"
    values = torch.from_numpy(returns[owner] - off_rows if per_step else returns)
    where = torch.from_numpy(groups[owner] if per_step else groups)
    if algo.name == "rloo":
        advantages = maths.rloo_advantages(values, where)
    else:
        # verl-agent's GiGPO divides both parts by a std, or (its `mean_norm`) neither.
        std = algo.normalize_std and (algo.name != "gigpo" or algo.step_normalize_std)
        advantages = maths.grpo_advantages(values, where, std)
    return advantages if per_step else advantages[torch.from_numpy(owner)]


def _gae(
    rewards: np.ndarray, kl: list[np.ndarray], owner: np.ndarray, scores: TokenStats, critic: CriticConfig
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """GAE over the action tokens of each `owner` [M]; a transition's reward [M] stands on its last token.

    kl: M arrays [A_m], which each token pays by itself.
    """
    assert scores.values is not None
    sizes = np.array([len(v) for v in scores.values])
    ends = np.cumsum(sizes)
    flat = -np.concatenate(kl)
    flat[ends - 1] += rewards
    values = torch.from_numpy(np.concatenate(scores.values))
    advantages, targets = maths.gae(
        torch.from_numpy(flat), values, torch.from_numpy(np.repeat(owner, sizes)), critic.gamma, critic.lam
    )
    if critic.whiten:
        advantages = maths.whiten(advantages)
    split = lambda x: np.split(x.numpy(), ends[:-1])  # noqa: E731
    return split(advantages), split(targets)
