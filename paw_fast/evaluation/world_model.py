"""Measures how well a policy predicts the effects of actions, on transitions that it was not trained on.

The model reads history and action and predicts the tokens of the next observation, each after the true ones before it.
A model that has learned only what observations look like does as well after another action; the gap between the two
tells how much it has learned of the action's effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from paw_fast.learner import packing
from paw_fast.learner.forward_backward import predict
from paw_fast.models.policy import Policy
from paw_fast.runs import progress, stop_signals
from paw_fast.types import Span, TokenSequence, Trajectory, Transition


@dataclass(frozen=True)
class WorldModelQuality:
    """Means over the observation tokens of `num_transitions`; probabilities at temperature 1.

    accuracy, probability                    share of tokens that are the most likely one; probability of the token
    shuffled_accuracy, shuffled_probability  the same after the action of another transition
    action_gap                               probability - shuffled_probability

    >>> WorldModelQuality(0.9, 0.8, 0.6, 0.5, 0.3, 256, 4000).action_gap
    0.3
    """

    accuracy: float
    probability: float
    shuffled_accuracy: float
    shuffled_probability: float
    action_gap: float
    num_transitions: int
    num_tokens: int

    def as_json(self) -> dict[str, float]:
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """The values by metric name."""
        names = ("accuracy", "probability", "shuffled_accuracy", "shuffled_probability", "action_gap")
        return {f"wm/eval_{name}": getattr(self, name) for name in names}


def measure_world_model(
    policy: Policy, trajectories: Sequence[Trajectory], *, token_budget: int, chunk: int, seed: int = 0,
    max_transitions: int = 256, check: Callable[[], None] = stop_signals.check,
) -> WorldModelQuality | None:  # fmt: skip
    """Measures `max_transitions` transitions drawn from the trajectories; None where none has an observation.

    A shuffled action is that of another drawn transition with a different command; where all commands are equal, the
    transition's own. `check` is called between batches and may raise to interrupt.
    """
    found = [t for trajectory in trajectories for t in trajectory.transitions if any(t.observation_mask)]
    if not found:
        return None
    rng = np.random.default_rng([seed, 5])
    drawn = [found[int(i)] for i in np.sort(rng.permutation(len(found))[:max_transitions])]
    others = _other_actions(drawn, rng)
    with progress.phase("measuring the world model", 2 * len(drawn), "predictions") as shown:
        true = _predict(policy, [(t, t.action_ids) for t in drawn], token_budget, chunk, check, shown)
        shuffled = _predict(policy, list(zip(drawn, others, strict=True)), token_budget, chunk, check, shown)
    return WorldModelQuality(*true[:2], *shuffled[:2], true[1] - shuffled[1], len(drawn), true[2])


def _other_actions(drawn: Sequence[Transition], rng: np.random.Generator) -> list[tuple[int, ...]]:
    commands = np.array([t.command for t in drawn])
    out = []
    for t in drawn:
        choices = np.flatnonzero(commands != t.command)
        out.append(drawn[int(rng.choice(choices))].action_ids if len(choices) else t.action_ids)
    return out


def _predict(
    policy: Policy, pairs: Sequence[tuple[Transition, tuple[int, ...]]], token_budget: int, chunk: int,
    check: Callable[[], None], done: progress.Phase,
) -> tuple[float, float, int]:  # fmt: skip
    """Accuracy, mean probability and number of the observation tokens after the given actions."""
    sequences = []
    for number, (t, action) in enumerate(pairs):
        start, end = len(t.prompt_ids), len(t.prompt_ids) + len(action)
        observed = tuple(end + i for i, is_text in enumerate(t.observation_mask) if is_text)
        span = Span(number, (start, end), observed, ())
        sequences.append(TokenSequence(number, t.prompt_ids + action + t.observation_ids, (span,)))
    tables = [packing.observation_rows(s, [1.0]) for s in sequences]
    lengths = [packing.input_length(t) for t in tables]
    hits, probability, count = 0, 0.0, 0
    for members in packing.plan_micro_batches(lengths, token_budget):
        check()
        batch = packing.pack(sequences, tables, members, policy.device)
        logprobs, correct = predict(policy, batch, chunk)
        hits += int(correct.sum())
        probability += float(logprobs.double().exp().sum())
        count += len(logprobs)
        done.done += len(members)
    return hits / count, probability / count, count
