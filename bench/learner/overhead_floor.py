"""Counts the tokens, rows and multiplications that the world-model loss adds to an update, for `overhead.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paw_fast.algorithms.base import Credit
from paw_fast.algorithms.world_model import WorldModelWeights
from paw_fast.learner import Learner, packing
from paw_fast.learner.loss_rows import build_tables
from paw_fast.learner.sequences import build_sequences
from paw_fast.types import TokenStats, Trajectory


@dataclass(frozen=True)
class Work:
    """Work of an update with PaW off, and the relative increase with PaW on.

    tokens, more_tokens: through the backbone. rows, more_rows: through the head. floor, floor_of_update: increase in
    multiplications of the whole update and of the forward and backward passes alone.
    """

    tokens: int
    more_tokens: float
    rows: int
    more_rows: float
    floor: float
    floor_of_update: float


def multiplications(lengths: Sequence[int], rows: int, config: Any) -> tuple[float, float]:
    """Multiplications of one forward pass: of the backbone (weights and causal attention) and of the head."""
    c = config.get_text_config()
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    kept = c.hidden_size * head * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    weights = c.num_hidden_layers * (kept + 3 * c.hidden_size * c.intermediate_size)
    attended = c.num_hidden_layers * c.num_attention_heads * head  # a query at position p attends to p keys and values
    return sum(n * weights + n * (n + 1) * attended for n in lengths), rows * c.hidden_size * c.vocab_size


def work_of(
    learner: Learner, trajectories: Sequence[Trajectory], config: Any, selected: np.ndarray | None = None
) -> Work:
    """The work that PaW adds for a model config; if `selected` is None, the share alpha is selected at random."""
    sequences = build_sequences(trajectories, learner.config.layout)
    turns = [t for episode in trajectories for t in episode.transitions]
    if selected is None:
        selected = np.zeros(len(turns), dtype=bool)
        selected[np.random.default_rng(1).permutation(len(turns))[: int(learner.config.paw.alpha * len(turns))]] = True
    none = [np.zeros(len(t.action_ids)) for t in turns]
    credit = Credit([np.ones(len(x), np.float32) for x in none], np.ones(len(trajectories), dtype=bool))
    stats = TokenStats(none, None, None, [])
    lengths, rows = [], []
    for which in (np.zeros_like(selected), selected):
        weights = WorldModelWeights(np.ones(len(trajectories)), which, which)
        tables = build_tables(sequences, stats, credit, weights)
        lengths.append([packing.input_length(t) for t in tables])
        rows.append(sum(len(t.positions) for t in tables))
    off, on = (multiplications(n, r, config) for n, r in zip(lengths, rows, strict=True))
    passes = 3 + learner.config.model.gradient_checkpointing  # forward, backward (two), and recomputation
    updates = [passes * body + 3 * head for body, head in (off, on)]
    whole = updates[0] + (1 + (learner.reference is not None)) * sum(off)
    tokens = [sum(n) for n in lengths]
    return Work(
        tokens[0], tokens[1] / tokens[0] - 1, rows[0], rows[1] / rows[0] - 1, (updates[1] - updates[0]) / whole,
        updates[1] / updates[0] - 1,
    )  # fmt: skip
