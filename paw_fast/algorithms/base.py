"""Defines the interface of algorithms, and the parts of credit assignment that they share. Imports no torch.

    trajectories + token statistics -> rewards of the transitions -> returns -> advantages of the tokens

Each algorithm is a class with its own settings in its own module; `registry` finds it by name. The formulas are pure
functions in `advantages`. docs/howto/add_algorithm.md has a worked example.

B trajectories, M transitions (trajectory after trajectory), A_m action tokens of transition m.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from paw_fast import registry
from paw_fast.config import AlgoConfig, TrainConfig
from paw_fast.errors import UserError
from paw_fast.types import RolloutBatch, TokenStats, Trajectory


@dataclass(frozen=True)
class Credit:
    """The learning targets of policy and critic. Produced by `Algorithm.credit`, consumed by the update.

    advantages     M arrays [A_m] float32
    policy_mask    [B] bool: False excludes the trajectory from the policy loss (dynamic sampling)
    value_targets  M arrays [A_m] float32, None without a critic

    >>> Credit([np.zeros(2, np.float32)], np.array([True])).policy_mask
    array([ True])
    """

    advantages: list[np.ndarray]
    policy_mask: np.ndarray
    value_targets: list[np.ndarray] | None = None


Settings = TypeVar("Settings", bound=AlgoConfig)


class Algorithm(ABC, Generic[Settings]):
    """Assigns credit: computes the advantage of every action token. `settings` is an object of the class `config`.

    config        the class of its settings: `AlgoConfig`, or a subclass with further fields
    needs_critic  whether it learns a value function: `TokenStats.values` is then given, and `Credit.value_targets`
                  required
    """

    config: ClassVar[type[AlgoConfig]] = AlgoConfig
    needs_critic: ClassVar[bool] = False

    def __init__(self, config: TrainConfig):
        settings: Any = config.algo
        self.settings: Settings = settings

    @abstractmethod
    def credit(self, batch: RolloutBatch, stats: TokenStats) -> Credit:
        """Computes the advantages of the action tokens of a batch. `stats` describes the same tokens."""


def algorithm_class(name: str) -> type[Algorithm[Any]]:
    """Returns the class of an algorithm. Raises `UserError` if the name is unknown or names something else.

    >>> algorithm_class("ppo").needs_critic
    True
    """
    return registry.find("algorithms", name)


def as_algorithm(found: Any, name: str) -> type[Algorithm[Any]]:
    """Returns `found`, imported by the name `name`, if it is an algorithm. Raises `UserError` if it is not."""
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(f"--algo {name}: it is {found!r}, expected a subclass of paw_fast.algorithms.base.Algorithm")
    return found


def make_algorithm(config: TrainConfig) -> Algorithm[Any]:
    """Creates the algorithm of a run."""
    return algorithm_class(config.algo.name)(config)


def transition_rewards(batch: RolloutBatch, algo: AlgoConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rewards [M] of the transitions, and the penalties [M] to subtract from the returns of single
    transitions: zeros, unless `penalty_in` is `row`, in which case the rewards do not include penalties."""
    transitions = batch.transitions
    penalties = np.array([0.0 if t.valid else algo.invalid_penalty for t in transitions])
    rewards = np.array([t.reward for t in transitions], dtype=np.float64)
    if algo.penalty_in == "row":
        return rewards + penalties, penalties
    return rewards, np.zeros(len(transitions))


def token_kl(stats: TokenStats, algo: AlgoConfig) -> list[np.ndarray]:
    """Returns M arrays [A_m]: kl_coef * (old - ref) of each action token if the KL is part of the rewards, else zeros.

    This is the k1 estimate of verl's `apply_kl_penalty`, which subtracts it from the reward of each token.
    """
    if algo.kl_in != "reward" or not algo.kl_coef:
        return [np.zeros(len(old)) for old in stats.old_logprobs]
    assert stats.ref_logprobs is not None
    pairs = zip(stats.old_logprobs, stats.ref_logprobs, strict=True)
    return [algo.kl_coef * (np.asarray(old, np.float64) - ref) for old, ref in pairs]


def has_reward_variance(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """Returns [B] bool: whether the returns in each trajectory's group differ, without penalties (DAPO's filter)."""
    groups = np.array([t.group for t in trajectories])
    returns = np.array([t.success_return for t in trajectories])
    mixed = {g for g in set(groups.tolist()) if np.ptp(returns[groups == g]) > 1e-9}
    return np.array([g in mixed for g in groups.tolist()])


def policy_mask(batch: RolloutBatch, algo: AlgoConfig) -> np.ndarray:
    """Returns [B] bool: the trajectories in the policy loss. Dynamic sampling excludes groups with equal returns."""
    if algo.dynamic_sampling:
        return has_reward_variance(batch.trajectories)
    return np.ones(len(batch.trajectories), dtype=bool)


def repeat_over_tokens(values: Iterable[float], stats: TokenStats) -> list[np.ndarray]:
    """Repeats the value [M] of each transition over its action tokens: M arrays [A_m] float32.

    >>> repeat_over_tokens([1.5], TokenStats([np.zeros(2)], None, None, []))
    [array([1.5, 1.5], dtype=float32)]
    """
    return [np.full(len(old), v, np.float32) for old, v in zip(stats.old_logprobs, values, strict=True)]
