"""How far the generator's log-probs lie from the trainer's on the same tokens, and what follows from it.

In exact arithmetic and on the same weights they are equal. A gap that grows means that the policy which is trained
is not the one that acted: stale weights, another precision, text that was tokenised anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paw_fast.config import PipelineConfig
from paw_fast.errors import UserError
from paw_fast.types import Trajectory


def sampled_logprobs(trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
    """The generator's log-probs, an array [A_m] for each transition."""
    return [np.array(x.rollout_logprobs) for t in trajectories for x in t.transitions]


def gap_metrics(sampled: Sequence[np.ndarray], old: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean and largest |difference| over all tokens, and the KL from generator to trainer in nats a token.

    The KL is the k3 estimate over sampled tokens, mean(exp(d) - 1 - d) with d = trainer - generator: unbiased and
    never negative (Schulman, http://joschu.net/blog/kl-approx.html).

    >>> gap_metrics([np.array([-1.0, -2.0])], [np.array([-1.0, -1.5])])["rollout/logprob_gap_mean"]
    0.25
    """
    d = np.concatenate([b - a for a, b in zip(sampled, old, strict=True)])
    return {
        "rollout/logprob_gap_mean": float(np.abs(d).mean()),
        "rollout/logprob_gap_max": float(np.abs(d).max()),
        "rollout/mismatch_kl": float(np.mean(np.expm1(d) - d)),
    }


def check_gap(metrics: dict[str, float], config: PipelineConfig, step: int) -> str | None:
    """A warning where the step's mean gap passes `gap_warn`. Raises `UserError` where it passes `gap_stop`."""
    gap = metrics["rollout/logprob_gap_mean"]
    what = f"step {step + 1}: log-probs of generator and trainer differ by {gap:.3g} nats in the mean"
    kl = f"KL {metrics['rollout/mismatch_kl']:.3g}"
    if not gap <= config.gap_stop:  # NaN stops too
        raise UserError(
            f"{what} ({kl}), more than --pipeline.gap-stop {config.gap_stop:g}; the policy was not updated with them. "
            "Compare --model.dtype with the generator's, or sync more often (--pipeline sync)"
        )
    return f"{what} ({kl}), more than --pipeline.gap-warn {config.gap_warn:g}" if gap > config.gap_warn else None


def truncated_importance(sampled: Sequence[np.ndarray], old: Sequence[np.ndarray], cap: float) -> list[np.ndarray]:
    """min(exp(trainer - generator), cap) for every sampled token: corrects for what was sampled with other weights.

    >>> [w.tolist() for w in truncated_importance([np.array([-1.0, -3.0])], [np.array([-1.0, -1.0])], 2.0)]
    [[1.0, 2.0]]
    """
    # The difference is bounded first, so that exp cannot overflow.
    limit = np.log(cap)
    return [np.exp(np.minimum(b - a, limit)).astype(np.float32) for a, b in zip(sampled, old, strict=True)]
