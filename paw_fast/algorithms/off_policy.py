"""Measures the difference between the log-probs of the engine and of the trainer, and corrects for it.

In exact arithmetic and with the same weights they are equal. A growing gap means that the rollouts come from another
policy than the trained one: stale weights, another precision, or text that was tokenized again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from paw_fast.config import PipelineConfig
from paw_fast.errors import UserError
from paw_fast.types import RolloutBatch, TokenStats


def correct(
    batch: RolloutBatch, stats: TokenStats, config: PipelineConfig, step: int, warn: Callable[[str], None]
) -> tuple[TokenStats, dict[str, float]]:
    """Returns the statistics, with importance weights if the rollouts are off-policy (`async`), and the gap's metrics.

    Calls `warn` for a gap above `gap_warn`; raises `UserError` for one above `gap_stop`.
    """
    sampled = [np.array(t.rollout_logprobs) for t in batch.transitions]
    metrics = gap_metrics(sampled, stats.old_logprobs)
    if warning := check_gap(metrics, config, step):
        warn(warning)
    if config.name != "async":
        return stats, metrics
    weights = truncated_importance(sampled, stats.old_logprobs, config.importance_cap)
    flat = np.concatenate(weights)
    metrics |= {
        "async/importance_mean": float(flat.mean()),
        "async/importance_capped_share": float((flat >= np.float32(config.importance_cap)).mean()),
    }
    return replace(stats, importance=weights), metrics


def gap_metrics(sampled: Sequence[np.ndarray], old: Sequence[np.ndarray]) -> dict[str, float]:
    """Computes the mean and largest |difference| over all tokens, and the KL from engine to trainer in nats per token.

    sampled, old: M arrays [A_m] of the engine's and the trainer's log-probs. The KL is the k3 estimate over sampled
    tokens, mean(exp(d) - 1 - d) with d = old - sampled: unbiased and never negative (Schulman,
    http://joschu.net/blog/kl-approx.html).

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
    """Returns a warning if the step's mean gap exceeds `gap_warn`. Raises `UserError` if it exceeds `gap_stop`."""
    gap = metrics["rollout/logprob_gap_mean"]
    what = f"step {step + 1}: log-probs of engine and trainer differ by {gap:.3g} nats in the mean"
    kl = f"KL {metrics['rollout/mismatch_kl']:.3g}"
    if math.isnan(gap):
        raise UserError(
            f"step {step + 1}: the log-probs of the engine or the trainer are NaN, so the model's weights or its "
            "forward pass are; the policy was not updated. Go on from the last checkpoint with --resume, with a lower "
            "--optim.learning-rate or another --model.dtype if it happens again"
        )
    if gap > config.gap_stop:
        raise UserError(
            f"{what} ({kl}), more than --pipeline.gap-stop {config.gap_stop:g}; the policy was not updated with them. "
            "Compare --model.dtype with the engine's, or sync more often (--pipeline sync)"
        )
    return f"{what} ({kl}), more than --pipeline.gap-warn {config.gap_warn:g}" if gap > config.gap_warn else None


def truncated_importance(sampled: Sequence[np.ndarray], old: Sequence[np.ndarray], cap: float) -> list[np.ndarray]:
    """Computes min(exp(old - sampled), cap) for every token, the weight of tokens sampled with other weights.

    >>> [w.tolist() for w in truncated_importance([np.array([-1.0, -3.0])], [np.array([-1.0, -1.0])], 2.0)]
    [[1.0, 2.0]]
    """
    # The difference is bounded first, so that exp cannot overflow.
    limit = np.log(cap)
    return [np.exp(np.minimum(b - a, limit)).astype(np.float32) for a, b in zip(sampled, old, strict=True)]
