"""Builds training sequences from trajectories, and locates their action and observation tokens.

`window`: each transition is a sequence of its own, prompt + action + next observation (the paper's layout).
`trajectory`: the whole episode is one sequence, in which every token is computed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from paw_fast.types import Span, TokenSequence, Trajectory, Transition


def build_sequences(
    trajectories: Sequence[Trajectory], layout: str, horizon: int = 1, max_tokens: int | None = None
) -> list[TokenSequence]:
    """Builds the training sequences of a batch, ordered by trajectory and step. `layout`: `window` or `trajectory`.

    With `horizon` k > 1 (window layout), a transition's sequence continues with the next k - 1 transitions of its
    episode as they were played, and its observation tokens are those of all k: the prediction of o_{t+1} .. o_{t+k}
    given h_t and a_t .. a_{t+k-1}. The added actions have no loss. A transition that would make the sequence longer
    than `max_tokens` is not added.
    """
    sequences: list[TokenSequence] = []
    number = 0
    for index, trajectory in enumerate(trajectories):
        if layout == "trajectory" and trajectory.transitions:
            last = trajectory.transitions[-1]
            ids = last.prompt_ids + last.action_ids + last.observation_ids
            spans, known = [], 0
            for t in trajectory.transitions:
                end = len(t.prompt_ids)
                assert t.prompt_ids[known:end] == ids[known:end], "a prompt does not continue the previous one"
                known = end
                spans.append(_span(number, t))
                number += 1
            sequences.append(TokenSequence(index, ids, tuple(spans)))
            continue
        transitions = trajectory.transitions
        for at, t in enumerate(transitions):
            span, ids = _span(number, t), t.prompt_ids + t.action_ids + t.observation_ids
            for later in transitions[at + 1 : at + horizon]:
                start = len(ids) + len(later.action_ids)
                if max_tokens is not None and start + len(later.observation_ids) > max_tokens:
                    break
                ids = ids + later.action_ids + later.observation_ids
                span = dataclasses.replace(span, observation=span.observation + _text_positions(start, later))
            sequences.append(TokenSequence(index, ids, (span,)))
            number += 1
    return sequences


def _span(number: int, t: Transition) -> Span:
    start = len(t.prompt_ids)
    end = start + len(t.action_ids)
    return Span(number, (start, end), _text_positions(end, t), t.rollout_logprobs)


def _text_positions(start: int, t: Transition) -> tuple[int, ...]:
    return tuple(start + i for i, is_text in enumerate(t.observation_mask) if is_text)
