"""Finds the turns of an episode that another trainer holds as one completion, and selects transitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from paw_fast.algorithms.world_model import first_of_equals, select_transitions
from paw_fast.config import PawConfig
from paw_fast.types import Transition


def find_turns(sampled: Sequence[bool]) -> Iterator[tuple[int, int, int]]:
    """Yields (start, end, last) of each turn: the action is [start, end), its observation [end, last).

    >>> list(find_turns([False, True, True, False, True]))
    [(1, 3, 4), (4, 5, 5)]
    """
    runs, at = [], 0
    for kind, members in groupby(sampled):
        length = len(list(members))
        runs.append((kind, at, at + length))
        at += length
    for index, (kind, start, end) in enumerate(runs):
        if kind:
            yield start, end, runs[index + 1][2] if index + 1 < len(runs) else end


def select(
    entropies: np.ndarray, has_target: np.ndarray, paw: PawConfig, seed: Sequence[int],
    transitions: Sequence[Transition] = (),
) -> np.ndarray:  # fmt: skip
    """Returns which transitions [M] are selected, as paw-fast's trainer does.

    entropies [M]; has_target bool [M]: those that an observation follows; transitions: read with `deduplicate`.
    """
    among = has_target & first_of_equals(transitions) if paw.deduplicate else has_target
    numbers = np.flatnonzero(among)
    selected = np.zeros(len(entropies), dtype=bool)
    selected[numbers[select_transitions(entropies[numbers], paw.alpha, paw.selection, seed=seed)]] = True
    return selected
