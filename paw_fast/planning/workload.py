"""Estimates how many tokens a training step has, from the settings of a run and typical lengths of its environment."""

from __future__ import annotations

from dataclasses import dataclass

from paw_fast.config import TrainConfig

TURN_SHARE = 0.6
"""Assumption: episodes take this share of `env.max_steps` (those that fail take all of it)."""


@dataclass(frozen=True)
class TurnLengths:
    """Tokens of the prompt of a turn, of its action and of the observation that follows."""

    prompt: int
    action: int
    observation: int


MEASURED = {
    "alfworld": TurnLengths(481, 91, 34),
    "webshop": TurnLengths(1277, 91, 375),
    "search": TurnLengths(489, 91, 220),
}
"""Mean lengths in the `window` layout with the `verl` template and Qwen2.5's pre-tokenization, by
bench/learner/overhead.py (docs/benchmarks/world_model_cost.md). The thought before a command is an assumption there."""
COMPACT = TurnLengths(60, 6, 20)
"""Assumption for the `compact` template, whose actions have no thoughts."""
OTHER = TurnLengths(600, 91, 100)
"""Assumption for other environments."""


@dataclass(frozen=True)
class Workload:
    """The tokens of a training step. Produced by `estimate`, consumed by `memory` and `step_time`.

    episodes: of a step. turns: of an episode. lengths: of a turn. sequence: tokens of a mean training sequence.
    longest: tokens of the longest sequence to prepare for. trained: tokens of all training sequences. sampled: action
    tokens. rows: tokens with a loss.
    """

    episodes: int
    turns: float
    lengths: TurnLengths
    sequence: int
    longest: int
    trained: int
    sampled: int
    rows: int


def estimate(config: TrainConfig, max_positions: int | None = None) -> Workload:
    """The tokens of a step. `max_positions`: positions that the model has.

    The longest sequence has twice the typical prompt and the longest action (`window`), or an episode that takes all
    its steps (`trajectory`), and never more than `rollout.max_sequence_tokens`.
    """
    r, env = config.rollout, config.env
    typical = COMPACT if env.template == "compact" else MEASURED.get(env.name, OTHER)
    lengths = TurnLengths(typical.prompt, min(typical.action, r.max_action_tokens), typical.observation)
    limit = min(r.max_sequence_tokens, max_positions or r.max_sequence_tokens)
    turns = max(1.0, TURN_SHARE * env.max_steps)
    episodes = r.groups * r.group_size
    turn = lengths.action + lengths.observation
    if config.layout == "trajectory":
        sequence = min(limit, round(lengths.prompt + turns * turn))
        longest = min(limit, lengths.prompt + env.max_steps * turn)
        trained = episodes * sequence
    else:
        sequence = min(limit, lengths.prompt + lengths.action + lengths.observation * config.paw.horizon)
        longest = min(limit, 2 * lengths.prompt + r.max_action_tokens + lengths.observation * config.paw.horizon)
        trained = round(episodes * turns * sequence)
    sampled = round(episodes * turns * lengths.action)
    share = config.paw.alpha * config.paw.token_fraction if config.paw.enabled else 0.0
    observed = episodes * turns * lengths.observation * share
    return Workload(episodes, turns, lengths, sequence, longest, trained, sampled, round(sampled + observed))
