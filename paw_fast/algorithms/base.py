"""Defines what an algorithm is, and the parts of credit assignment that algorithms share. Imports no torch.

    trajectories + token statistics -> rewards of the transitions -> returns -> advantages of the tokens

An algorithm is a class of its own module with its own settings; `registry` finds it by name. The formulas are pure
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
    """What the policy and the critic learn from. Produced by `Algorithm.credit`, consumed by the update.

    advantages     M arrays [A_m] float32
    policy_mask    [B] bool: False leaves the trajectory out of the policy loss (dynamic sampling)
    value_targets  M arrays [A_m] float32, None without a critic

    >>> Credit([np.zeros(2, np.float32)], np.array([True])).policy_mask
    array([ True])
    """

    advantages: list[np.ndarray]
    policy_mask: np.ndarray
    value_targets: list[np.ndarray] | None = None


Settings = TypeVar("Settings", bound=AlgoConfig)


class Algorithm(ABC, Generic[Settings]):
    """Assigns credit: says what every action token is worth. `settings` are the algorithm's own, of `config`.

    config        class of its settings: `AlgoConfig`, or a subclass with fields of its own
    needs_critic  whether it learns a value function; `TokenStats.values` is then there, and `Credit.value_targets`
                  must be
    """

    config: ClassVar[type[AlgoConfig]] = AlgoConfig
    needs_critic: ClassVar[bool] = False

    def __init__(self, config: TrainConfig):
        settings: Any = config.algo
        self.settings: Settings = settings

    @abstractmethod
    def credit(self, batch: RolloutBatch, stats: TokenStats) -> Credit:
        """Advantages of the batch's action tokens, which `stats` describes."""


def algorithm_class(name: str) -> type[Algorithm[Any]]:
    """The class of an algorithm. Raises `UserError` for an unknown name and for what is no algorithm.

    >>> algorithm_class("ppo").needs_critic
    True
    """
    return registry.find("algorithms", name)


def as_algorithm(found: Any, name: str) -> type[Algorithm[Any]]:
    """What `registry.find` has imported by a name, if it is an algorithm. Raises `UserError` if it is not."""
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(f"--algo {name}: it is {found!r}, expected a subclass of paw_fast.algorithms.base.Algorithm")
    return found


def make_algorithm(config: TrainConfig) -> Algorithm[Any]:
    """The algorithm of a run."""
    return algorithm_class(config.algo.name)(config)


def transition_rewards(batch: RolloutBatch, algo: AlgoConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [M] of the transitions, and the penalties [M] that are still to be taken from single transitions' returns
    (zeros, unless `penalty_in` is `row`: the rewards are then without penalties)."""
    transitions = batch.transitions
    penalties = np.array([0.0 if t.valid else algo.invalid_penalty for t in transitions])
    rewards = np.array([t.reward for t in transitions], dtype=np.float64)
    if algo.penalty_in == "row":
        return rewards + penalties, penalties
    return rewards, np.zeros(len(transitions))


def token_kl(stats: TokenStats, algo: AlgoConfig) -> list[np.ndarray]:
    """M arrays [A_m]: kl_coef * (old - ref) of each action token, where the KL is in the rewards; else zeros.

    That is the k1 estimate of verl's `apply_kl_penalty`, which subtracts it from the reward of each token.
    """
    if algo.kl_in != "reward" or not algo.kl_coef:
        return [np.zeros(len(old)) for old in stats.old_logprobs]
    assert stats.ref_logprobs is not None
    pairs = zip(stats.old_logprobs, stats.ref_logprobs, strict=True)
    return [algo.kl_coef * (np.asarray(old, np.float64) - ref) for old, ref in pairs]


def has_reward_variance(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """[B] bool: whether the returns of the trajectory's group differ, penalties left out (DAPO's filter)."""
    groups = np.array([t.group for t in trajectories])
    returns = np.array([t.success_return for t in trajectories])
    mixed = {g for g in set(groups.tolist()) if np.ptp(returns[groups == g]) > 1e-9}
    return np.array([g in mixed for g in groups.tolist()])


def policy_mask(batch: RolloutBatch, algo: AlgoConfig) -> np.ndarray:
    """[B] bool: which trajectories the policy learns from; dynamic sampling leaves out groups of equal returns."""
    if algo.dynamic_sampling:
        return has_reward_variance(batch.trajectories)
    return np.ones(len(batch.trajectories), dtype=bool)


def repeat_over_tokens(values: Iterable[float], stats: TokenStats) -> list[np.ndarray]:
    """A value [M] of each transition for each of its action tokens: M arrays [A_m] float32.

    >>> repeat_over_tokens([1.5], TokenStats([np.zeros(2)], None, None, np.zeros(1)))
    [array([1.5, 1.5], dtype=float32)]
    """
    return [np.full(len(old), v, np.float32) for old, v in zip(stats.old_logprobs, values, strict=True)]
