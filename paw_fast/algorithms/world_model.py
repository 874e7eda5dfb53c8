"""Selects the transitions that the world-model loss learns from, and weighs them.

`select` does both for a batch by a run's settings; the rest are pure functions. B trajectories, M transitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paw_fast import kernels
from paw_fast.config import TrainConfig
from paw_fast.types import RolloutBatch, TokenStats, Transition


@dataclass(frozen=True)
class WorldModelWeights:
    """What the world model learns from. Produced by `select`, consumed by the loss rows.

    lambdas     [B] weight of each trajectory's group
    selected    [M] bool: the transitions whose observation is predicted
    has_target  [M] bool: the transitions that could have been selected, as an observation to predict follows

    >>> WorldModelWeights(np.ones(1), np.array([True, False]), np.array([True, True])).selected.sum()
    np.int64(1)
    """

    lambdas: np.ndarray
    selected: np.ndarray
    has_target: np.ndarray


def select(batch: RolloutBatch, stats: TokenStats, config: TrainConfig, step: int) -> WorldModelWeights | None:
    """Selects transitions of a step's batch and weighs them; None where the world-model loss is off."""
    paw = config.paw
    if not paw.enabled:
        return None
    has_target = np.zeros(len(stats.entropies), dtype=bool)
    has_target[[span.transition for q in batch.sequences for span in q.spans if span.observation]] = True
    success = np.array([t.success_return for t in batch.trajectories])
    lambdas = group_lambdas(success, batch.groups, config.algo.success_reward, paw.lambda_0, paw.balance)
    among = has_target & first_of_equals(batch.transitions) if paw.deduplicate else has_target
    numbers = np.flatnonzero(among)
    scores, mode = stats.entropies, paw.selection
    if mode == "surprise":
        scores, mode = action_surprises(stats.old_logprobs), "entropy"  # the highest, as with entropies
    picked = select_transitions(scores[numbers], paw.alpha, mode, seed=(config.seed, 3, step))
    selected = np.zeros(len(stats.entropies), dtype=bool)
    selected[numbers[picked]] = True
    return WorldModelWeights(lambdas, selected, has_target)


def select_transitions(
    entropies: np.ndarray, alpha: float, mode: str = "entropy", seed: int | Sequence[int] = 0,
    candidates: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Selects a share `alpha` of the transitions by action entropy (PaW, arXiv 2606.02388).

    entropies [M]: mean over an action's tokens of the full-vocabulary entropy, in nats -> bool [M], with
    max(1, floor(alpha * M)) True. `mode`: `entropy` takes the highest (ties: the lower index), `lowest` the
    lowest, `random` by `seed`, `all` everything. `candidates` bool [M]: the result is that of these transitions
    alone, False elsewhere. Raises `ValueError` for another mode, alpha outside (0, 1] or a candidate's entropy
    that is not a number.

    >>> select_transitions(np.array([0.1, 2.0, 0.5, 2.0]), 0.5).tolist()
    [False, True, False, True]
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected a share in (0, 1]")
    if mode not in kernels.SELECTION_MODES:
        raise ValueError(f"selection is {mode!r}, expected one of {', '.join(kernels.SELECTION_MODES)}")
    entropies = np.array(entropies, dtype=np.float64, order="C")
    bad = np.isnan(entropies) if candidates is None else np.isnan(entropies) & candidates
    if bad.any():
        raise ValueError(f"entropies: number {int(bad.argmax())} of {len(entropies)} is NaN")
    if len(entropies) == 0:
        return np.zeros(0, dtype=bool)
    # Each entropy is a mean already: one "token" for each transition, and no observation tokens to weigh.
    offsets = torch.arange(len(entropies) + 1)
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return kernels.select_transitions(
        torch.from_numpy(entropies), offsets, torch.zeros_like(offsets), torch.zeros(len(entropies)), alpha, 0,
        mode=mode, generator=torch.Generator().manual_seed(int(state)),
        candidates=None if candidates is None else torch.from_numpy(np.array(candidates, dtype=bool)),
    ).selected.numpy()  # fmt: skip


def action_surprises(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    """Surprise of each action: the mean negative log-prob of its sampled tokens, in nats (the second version of the
    PaW paper selects by it, the first by entropy).

    logprobs: M arrays [A_m], each with at least one token -> [M] float64.

    >>> action_surprises([np.array([-1.0, -3.0]), np.array([-0.5])]).tolist()
    [2.0, 0.5]
    """
    return np.array([-float(np.mean(one, dtype=np.float64)) for one in logprobs])


def group_lambdas(
    returns: np.ndarray, groups: np.ndarray, max_return: float, lambda_0: float = 1.0, balance: str = "adaptive"
) -> np.ndarray:
    """The world-model weight of each trajectory's group (PaW): lambda_0 * clamp(1 - mean_g(R) / R_max, 0, 1).

    returns [B] (without penalties), groups [B] -> [B] float64. `fixed` gives lambda_0 throughout.

    >>> group_lambdas(np.array([10.0, 0.0, 0.0, 0.0]), np.array([0, 0, 1, 1]), 10.0).tolist()
    [0.5, 0.5, 1.0, 1.0]
    """
    if max_return <= 0:
        raise ValueError(f"max_return is {max_return}, expected more than 0")
    returns = np.asarray(returns, dtype=np.float64)
    if balance == "fixed":
        return np.full(len(returns), lambda_0)
    if balance != "adaptive":
        raise ValueError(f"balance is {balance!r}, expected adaptive or fixed")
    _, index = np.unique(groups, return_inverse=True)
    means = np.bincount(index, weights=returns) / np.bincount(index)
    return lambda_0 * np.clip(1.0 - means / max_return, 0.0, 1.0)[index]


def first_of_equals(transitions: Sequence[Transition]) -> np.ndarray:
    """[M] bool: False where an earlier transition had the same history, action and observation, token for token.

    Episodes of one task start alike; what they share need not be predicted once for each of them.
    """
    seen: set[tuple[tuple[int, ...], ...]] = set()
    first = np.zeros(len(transitions), dtype=bool)
    for number, t in enumerate(transitions):
        key = (t.prompt_ids, t.action_ids, t.observation_ids)
        first[number] = key not in seen
        seen.add(key)
    return first
