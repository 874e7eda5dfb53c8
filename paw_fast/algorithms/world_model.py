"""Selects the transitions that the world-model loss learns from, and weighs them.

`select` does both for a batch by a run's settings; the rest are pure functions. B trajectories, M transitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paw_fast import kernels
from paw_fast.config import TrainConfig
from paw_fast.types import RolloutBatch, TokenSequence, TokenStats, Transition

_COMPARED_TOKENS = 16  # at the end of a history


@dataclass(frozen=True)
class WorldModelWeights:
    """What the world model learns from. Produced by `select`, consumed by the loss rows.

    lambdas     [B] weight of each trajectory's group
    selected    [M] bool: the transitions whose observation is predicted
    has_target  [M] bool: the transitions that could have been selected, as an observation to predict follows
    selection   the kernel's results on the device, of which `selected` is a copy; None where the selection was made on
                the host

    >>> WorldModelWeights(np.ones(1), np.array([True, False]), np.array([True, True])).selected.sum()
    np.int64(1)
    """

    lambdas: np.ndarray
    selected: np.ndarray
    has_target: np.ndarray
    selection: kernels.Selection | None = None


def select(batch: RolloutBatch, stats: TokenStats, config: TrainConfig, step: int) -> WorldModelWeights | None:
    """Selects transitions of a step's batch and weighs them; None where the world-model loss is off.

    Runs on the device that holds the entropies. The host reads one byte for each transition, whether it is selected:
    the lengths of the sequences to pack depend on it.
    """
    paw = config.paw
    if not paw.enabled:
        return None
    lengths = _observation_lengths(batch.sequences)
    has_target = lengths > 0
    success = np.array([t.success_return for t in batch.trajectories])
    lambdas = group_lambdas(success, batch.groups, config.algo.success_reward, paw.lambda_0, paw.balance)
    if len(lengths) == 0:
        return WorldModelWeights(lambdas, has_target, has_target)
    among = has_target & first_of_equals(batch.transitions) if paw.deduplicate else has_target
    entropies = torch.cat(list(stats.token_entropies))
    device = entropies.device
    selection = kernels.select_transitions(
        entropies, _offsets(stats.num_action_tokens, device), _offsets(lengths, device),
        _move(lambdas[batch.owners].astype(np.float32), device), paw.alpha, int(lengths.sum()), mode=paw.selection,
        generator=_generator((config.seed, 3, step)), candidates=_move(among, device),
    )  # fmt: skip
    return WorldModelWeights(lambdas, selection.selected.cpu().numpy(), has_target, selection)


def token_weights(world_model: WorldModelWeights, picked: Sequence[TokenSequence], device: torch.device) -> Tensor:
    """The weights [W] fp32 of all observation tokens of an optimizer batch, sequence after sequence, on `device`.

    lambda / N_WM on those of selected transitions, N_WM being their number in this optimizer batch; 0 on the others.
    Where the optimizer batch is the whole step's, they have been computed with the selection; else by the same kernel,
    of the transitions `picked`.
    """
    numbers = np.array([span.transition for q in picked for span in q.spans], dtype=np.int64)
    found = world_model.selection
    if found is not None and np.array_equal(numbers, np.arange(len(world_model.selected))):
        return found.wm_weights.to(device)
    if len(numbers) == 0:
        return torch.zeros(0, device=device)
    lengths = _observation_lengths(picked)
    selected = _move(world_model.selected, device) if found is None else found.selected.to(device)
    lambdas = np.repeat(world_model.lambdas[[q.trajectory for q in picked]], [len(q.spans) for q in picked])
    # All of the selected ones are selected again, whatever their entropies.
    return kernels.select_transitions(
        torch.zeros(0, device=device), _offsets(np.zeros_like(numbers), device), _offsets(lengths, device),
        _move(lambdas.astype(np.float32), device), 1.0, int(lengths.sum()), mode="all",
        candidates=selected[_move(numbers, device)],
    ).wm_weights  # fmt: skip


def _observation_lengths(sequences: Sequence[TokenSequence]) -> np.ndarray:
    """Number of observation tokens of each transition in the sequences, [M] int64."""
    return np.array([len(span.observation) for q in sequences for span in q.spans], dtype=np.int64)


def _offsets(lengths: Sequence[int] | np.ndarray, device: torch.device) -> Tensor:
    """Where each of consecutive segments begins, and the last one ends: [M + 1] int64."""
    return _move(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), device)


def _move(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def _generator(seed: int | Sequence[int]) -> torch.Generator:
    """Random numbers of the host, so that a selection does not depend on the device."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


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
    return kernels.select_transitions(
        torch.from_numpy(entropies), offsets, torch.zeros_like(offsets), torch.zeros(len(entropies)), alpha, 0,
        mode=mode, generator=_generator(seed),
        candidates=None if candidates is None else torch.from_numpy(np.array(candidates, dtype=bool)),
    ).selected.numpy()  # fmt: skip


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
    seen: dict[tuple[int | tuple[int, ...], ...], list[tuple[int, ...]]] = {}
    first = np.zeros(len(transitions), dtype=bool)
    for number, t in enumerate(transitions):
        # Whole histories are compared only where their lengths and ends agree: hashing each would take the square of
        # the number of turns in the `trajectory` layout.
        key = (len(t.prompt_ids), t.prompt_ids[-_COMPARED_TOKENS:], t.action_ids, t.observation_ids)
        histories = seen.setdefault(key, [])
        first[number] = t.prompt_ids not in histories
        if first[number]:
            histories.append(t.prompt_ids)
    return first
