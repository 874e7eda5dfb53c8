"""From trajectories to training sequences: which tokens the policy sampled, which the environment answered.

`window`: each transition is a sequence of its own, prompt + action + next observation (the paper's layout).
`trajectory`: the whole episode is one sequence; every token stands in it, and is computed, once.
"""

from __future__ import annotations

from collections.abc import Sequence

from paw_fast.types import Span, TokenSequence, Trajectory


def build_sequences(trajectories: Sequence[Trajectory], layout: str) -> list[TokenSequence]:
    """Training sequences of a batch, in order of trajectories and turns. `layout` is `window` or `trajectory`."""
    sequences: list[TokenSequence] = []
    number = 0
    for index, trajectory in enumerate(trajectories):
        if layout == "trajectory" and trajectory.transitions:
            last = trajectory.transitions[-1]
            ids = last.prompt_ids + last.action_ids + last.observation_ids
            spans = []
            for t in trajectory.transitions:
                assert t.prompt_ids == ids[: len(t.prompt_ids)], "a prompt does not continue the one before"
                spans.append(_span(number, t))
                number += 1
            sequences.append(TokenSequence(index, ids, tuple(spans)))
            continue
        for t in trajectory.transitions:
            span = _span(number, t)
            sequences.append(TokenSequence(index, t.prompt_ids + t.action_ids + t.observation_ids, (span,)))
            number += 1
    return sequences


def _span(number: int, t) -> Span:
    start = len(t.prompt_ids)
    end = start + len(t.action_ids)
    observation = tuple(end + i for i, is_text in enumerate(t.observation_mask) if is_text)
    return Span(number, (start, end), observation, t.rollout_logprobs)
