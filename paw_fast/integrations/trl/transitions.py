"""Finds the transitions in TRL's completions, and selects those whose observations are predicted.

A completion is one episode: sampled tokens (tool mask 1) and tokens of tools or the environment (tool mask 0) in turn.
A run of sampled tokens is an action, and the run after it the observation that it led to.

Shapes: B sequences, P prompt tokens, C completion tokens, M transitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paw_fast.integrations.turns import find_turns, select
from paw_fast.types import Span, TokenSequence, Transition

__all__ = ["describe", "find_sequences", "find_text", "find_turns", "observation_mask", "select"]

PROBES = ("0", "x")
"""Contents of tool messages that share no token, by which the markup around a content is found."""


def find_sequences(
    inputs: Mapping[str, Any], observation_text: Mapping[tuple[int, ...], Sequence[bool]]
) -> list[TokenSequence]:
    """Returns the B sequences of a batch of TRL, without padding, with their transitions.

    inputs            prompt_ids, prompt_mask [B, P], padded left; completion_ids, completion_mask and, with tools,
                      tool_mask [B, C], padded right
    observation_text  for the tokens of an observation, which of them are its text (chat markup is not predicted). Of
                      observations that are not in it, all tokens are predicted.

    The last action of an episode usually has no observation: its span has no positions. Tokens of the environment
    before the first action belong to no transition.
    """
    rows = {name: inputs[name].cpu() for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
    sampled = inputs["tool_mask"].cpu() if "tool_mask" in inputs else torch.ones_like(rows["completion_ids"])
    sequences, number = [], 0
    for row in range(len(sampled)):
        prompt = rows["prompt_ids"][row][rows["prompt_mask"][row].bool()].tolist()
        length = int(rows["completion_mask"][row].sum())
        completion = rows["completion_ids"][row, :length].tolist()
        spans = []
        for start, end, last in find_turns(sampled[row, :length].bool().tolist()):
            text = observation_text.get(tuple(completion[end:last]), (True,) * (last - end))
            positions = (len(prompt) + end + i for i, is_text in enumerate(text) if is_text)
            spans.append(Span(number, (len(prompt) + start, len(prompt) + end), tuple(positions), ()))
            number += 1
        sequences.append(TokenSequence(row, (*prompt, *completion), tuple(spans)))
    return sequences


def find_text(ids: Sequence[int], probes: Sequence[Sequence[int]]) -> tuple[bool, ...]:
    """Returns which tokens of a rendered tool message are its content, given renderings of the same with `PROBES`.

    Markup is what all begin with and what all end with. With several messages in one turn, the markup between them
    counts as text.

    >>> find_text([1, 2, 7, 8, 3], [[1, 2, 5, 3], [1, 2, 6, 3]])
    (False, False, True, True, False)
    """
    first = _num_equal(probes[0], probes[1])
    first = _num_equal(ids, probes[0][:first])
    rest = [list(one)[::-1] for one in (ids, *probes)]
    last = _num_equal(rest[1], rest[2])
    last = min(_num_equal(rest[0], rest[1][:last]), len(ids) - first)
    return (False,) * first + (True,) * (len(ids) - first - last) + (False,) * last


def _num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin.

    >>> _num_equal([1, 2, 3], [1, 2])
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def action_entropies(sequences: Sequence[TokenSequence], prompt_mask: Tensor, entropies: Tensor) -> np.ndarray:
    """Mean entropy [M] over the tokens of each action. prompt_mask: [B, P]; entropies: [B, C], of the completions."""
    starts, entropies = prompt_mask.sum(1).tolist(), entropies.double().cpu()
    means = [
        float(entropies[q.trajectory, s.action[0] - start : s.action[1] - start].mean())
        for q, start in zip(sequences, starts, strict=True)
        for s in q.spans
    ]
    return np.array(means, dtype=np.float64)


def observation_mask(
    sequences: Sequence[TokenSequence], prompt_mask: Tensor, width: int, selected: np.ndarray
) -> Tensor:
    """Returns [B, width] int64: 1 on the observation tokens of the selected transitions [M], else 0."""
    mask = torch.zeros(len(sequences), width, dtype=torch.int64)
    for q, start in zip(sequences, prompt_mask.sum(1).tolist(), strict=True):
        for span in q.spans:
            if selected[span.transition]:
                mask[q.trajectory, torch.tensor(span.observation, dtype=torch.int64) - start] = 1
    return mask


def describe(sequences: Sequence[TokenSequence]) -> list[Transition]:
    """The M transitions with their tokens, for `PawConfig.deduplicate`."""
    return [
        Transition(
            q.ids[: s.action[0]], q.ids[slice(*s.action)], (), tuple(q.ids[p] for p in s.observation),
            (True,) * len(s.observation), command="", observation_text="", anchor_obs="", reward=0.0, valid=True,
        )
        for q in sequences for s in q.spans
    ]  # fmt: skip
