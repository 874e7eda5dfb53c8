"""Replaces what the world-model loss teaches by controls that hold no information about the environment.

`replace_targets`: the observation of another transition, in the places of the same loss rows (`--paw.target shuffled`
and `other-task`). `randomize_gradients`: a gradient of the same norm in a random direction (`noise`).

M transitions, N of them selected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch

from paw_fast.algorithms.world_model import WorldModelWeights
from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.learner.sequences import build_sequences
from paw_fast.types import RolloutBatch, Transition

_TARGET_STREAM, _NOISE_STREAM = 8, 9
"""Parts of the seeds, so that the controls draw other numbers than the rest of a run."""
_SWAPS = 8
"""Random exchanges for each transition, after which the permutation no longer shows how it was begun."""
_FORBIDDEN = 8
"""Cost of a target that is not allowed; above all that four unwanted ones can cost."""


def replace_targets(
    batch: RolloutBatch, weights: WorldModelWeights, config: TrainConfig, step: int, max_tokens: int | None = None
) -> tuple[RolloutBatch, WorldModelWeights, float]:
    """Gives every selected transition of a step's batch the observation of another one, by `config.paw.target`.

    The targets are permuted among the selected transitions: their lengths, and with them the number of loss rows and
    N_WM, stay the same, and each row keeps the weight of the transition whose history and action it is predicted from.
    `shuffled` never gives a transition a text equal to its own, unless a text makes up more than half of the targets
    (the rest of them then keep it). `other-task` never gives it one of its own task; where a task makes up more than
    half, its rest is no longer selected. A target that is too long for its place is avoided, else cut to `max_tokens`.
    The draw depends on `config.seed` and `step` alone.

    Returns the batch, its weights, and the share of the selected transitions whose target differs from the true one.
    """
    numbers = np.flatnonzero(weights.selected)
    transitions = batch.transitions
    chosen = [transitions[i] for i in numbers]
    targets = [target_ids(t) for t in chosen]
    if not chosen:
        return batch, weights, 0.0
    texts = _labels(targets)
    labels = texts
    if config.paw.target == "other-task":
        tasks = [batch.trajectories[i].task for i in batch.owners[numbers]]
        labels = _labels([task.key or task.task_id for task in tasks])
    lengths = np.array([len(ids) for ids in targets])
    room = np.full(len(chosen), np.iinfo(np.int64).max)
    if max_tokens is not None:
        room = np.array([max_tokens - len(t.prompt_ids) - len(t.action_ids) - len(_markup(t)) for t in chosen])
    rng = np.random.default_rng([config.seed, _TARGET_STREAM, step])
    sources = permute_targets(labels, texts, lengths, room, rng)
    selected = weights.selected.copy()
    changed = 0
    for at, (number, source) in enumerate(zip(numbers, sources, strict=True)):
        if config.paw.target == "other-task" and labels[at] == labels[source]:
            selected[number] = False
            continue
        transitions[number] = with_target(chosen[at], chosen[source], int(room[at]))
        changed += texts[at] != texts[source]
    trajectories, at = [], 0
    for trajectory in batch.trajectories:
        end = at + len(trajectory.transitions)
        trajectories.append(dataclasses.replace(trajectory, transitions=tuple(transitions[at:end])))
        at = end
    replaced = RolloutBatch(tuple(trajectories), tuple(build_sequences(trajectories, "window")))
    share = changed / max(1, int(selected.sum()))
    # The token weights that came with the selection are of the true targets; without it they are computed anew.
    return replaced, dataclasses.replace(weights, selected=selected, selection=None), share


def permute_targets(
    labels: np.ndarray, texts: np.ndarray, lengths: np.ndarray, room: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws a permutation: transition i gets the target of transition `result[i]`, [N].

    labels, texts [N]: integers from 0. As few as possible get a target with their own label: none, unless one label
    makes up more than half. Among such permutations those are preferred in which no text stays where it was and every
    length [N] fits into its room [N].

    >>> permute_targets(np.array([0, 0, 1, 1]), np.arange(4), np.ones(4), np.ones(4), np.random.default_rng(0)).tolist()
    [3, 2, 0, 1]
    """
    count = len(labels)
    # Sorted by label in random order, and rotated by the size of the largest: no label meets itself that need not.
    order = rng.permutation(count)
    order = order[np.argsort(rng.permutation(int(labels.max()) + 1)[labels[order]], kind="stable")]
    sources = np.empty(count, dtype=np.int64)
    sources[order] = np.roll(order, -int(np.bincount(labels).max()))
    found: list[int] = sources.tolist()
    label, text, length, space = labels.tolist(), texts.tolist(), lengths.tolist(), room.tolist()

    def cost(i: int, j: int) -> int:
        return _FORBIDDEN * (label[i] == label[j]) + (text[i] == text[j]) + (length[j] > space[i])

    for i, j in rng.integers(count, size=(_SWAPS * count, 2)).tolist():
        a, b = found[i], found[j]
        if cost(i, b) + cost(j, a) <= cost(i, a) + cost(j, b):
            found[i], found[j] = b, a
    return np.array(found, dtype=np.int64)


def target_ids(transition: Transition) -> tuple[int, ...]:
    """The tokens of a transition's observation that are predicted, without markup."""
    pairs = zip(transition.observation_ids, transition.observation_mask, strict=True)
    return tuple(i for i, is_text in pairs if is_text)


def with_target(transition: Transition, other: Transition, room: int) -> Transition:
    """The transition with its own markup and the observation of another one, of which at most `room` tokens."""
    markup, ids = _markup(transition), target_ids(other)[: max(0, room)]
    shift = len(markup) - len(_markup(other))
    end = len(markup) + len(ids)
    places = ((first + shift, min(last + shift, end), name) for first, last, name in other.passages)
    return dataclasses.replace(
        transition, observation_ids=markup + ids, observation_mask=(False,) * len(markup) + (True,) * len(ids),
        passages=tuple(place for place in places if place[0] < place[1]),
    )  # fmt: skip


def _markup(transition: Transition) -> tuple[int, ...]:
    """The tokens between an action and the text of the observation."""
    mask = transition.observation_mask
    return transition.observation_ids[: mask.index(True) if True in mask else len(mask)]


def _labels(values: Sequence[Hashable]) -> np.ndarray:
    """An integer for each value, equal where the values are; numbered from 0 in their order."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def noise_generator(seed: Sequence[int], device: torch.device) -> torch.Generator:
    """The generator of an optimizer step's random directions. Equal seeds draw equal numbers on one kind of device."""
    state = np.random.SeedSequence([*seed, _NOISE_STREAM]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> 1))


@torch.no_grad()
def randomize_gradients(parameters: Iterable[torch.nn.Parameter], generator: torch.Generator) -> float:
    """Replaces the gradient of each parameter by one of the same norm in a direction drawn uniformly, in place.

    Returns the global norm. Parameters without a gradient are left as they are. Raises `UserError` for parameters that
    are sharded over processes, each of which would draw a direction of its own.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> randomize_gradients([weight], torch.Generator().manual_seed(0)), round(weight.grad.norm().item(), 5)
    (5.0, 5.0)
    """
    squares = 0.0
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if hasattr(parameter.grad, "placements"):  # a DTensor
            raise UserError("--paw.target noise does not support parameters that are sharded over several processes")
        norm = parameter.grad.float().norm()
        squares += float(norm) ** 2
        drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device)
        parameter.grad.copy_(drawn * (norm / drawn.norm().clamp(min=1e-30)))
    return squares**0.5
