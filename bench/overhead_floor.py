"""What the world model adds at least: tokens, rows and multiplications of an update, counted for bench/overhead.py."""

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
    """Tokens through the backbone and rows through the head, off and on, and the share of multiplications added."""

    tokens: int
    more_tokens: float
    rows: int
    more_rows: float
    floor: float
    floor_of_update: float


def multiplications(lengths: Sequence[int], rows: int, config: Any) -> tuple[float, float]:
    """Of one forward pass: the backbone's (weights and causal attention) and the head's."""
    c = config.get_text_config()
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    kept = c.hidden_size * head * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    weights = c.num_hidden_layers * (kept + 3 * c.hidden_size * c.intermediate_size)
    attended = c.num_hidden_layers * c.num_attention_heads * head  # a query at position p meets p keys and p values
    return sum(n * weights + n * (n + 1) * attended for n in lengths), rows * c.hidden_size * c.vocab_size


def work_of(
    learner: Learner, trajectories: Sequence[Trajectory], config: Any, selected: np.ndarray | None = None
) -> Work:
    """What PaW adds for a model of that config; without `selected`, alpha of the transitions is picked at random."""
    sequences = build_sequences(trajectories, learner.config.layout)
    turns = [t for episode in trajectories for t in episode.transitions]
    if selected is None:
        selected = np.zeros(len(turns), dtype=bool)
        selected[np.random.default_rng(1).permutation(len(turns))[: int(learner.config.paw.alpha * len(turns))]] = True
    none = [np.zeros(len(t.action_ids)) for t in turns]
    credit = Credit([np.ones(len(x), np.float32) for x in none], np.ones(len(trajectories), dtype=bool))
    stats = TokenStats(none, None, None, np.zeros(len(turns)))
    lengths, rows = [], []
    for which in (np.zeros_like(selected), selected):
        weights = WorldModelWeights(np.ones(len(trajectories)), which, which)
        tables = build_tables(sequences, stats, credit, weights)
        lengths.append([packing.input_length(t) for t in tables])
        rows.append(sum(len(t.positions) for t in tables))
    off, on = (multiplications(n, r, config) for n, r in zip(lengths, rows, strict=True))
    passes = 3 + learner.config.model.gradient_checkpointing  # the backward's two, and the forward again
    updates = [passes * body + 3 * head for body, head in (off, on)]
    whole = updates[0] + (1 + (learner.reference is not None)) * sum(off)
    tokens = [sum(n) for n in lengths]
    return Work(
        tokens[0], tokens[1] / tokens[0] - 1, rows[0], rows[1] / rows[0] - 1, (updates[1] - updates[0]) / whole,
        updates[1] / updates[0] - 1,
    )  # fmt: skip
