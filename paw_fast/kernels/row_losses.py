"""Computes the losses of rows in plain torch from the log-prob of the target and the entropy of each.

The native kernels compute them with the logits; this form serves where a row's logits are spread over processes, and as
the last part of the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paw_fast.kernels.paw_loss import (
    CLIPPED,
    DUAL_CLIPPED,
    POLICY,
    SATURATED,
    WORLD_MODEL,
    LossOutput,
    LossRows,
    LossSettings,
)


def row_losses(logp: Tensor, entropies: Tensor, rows: LossRows, settings: LossSettings) -> LossOutput:
    """The losses of rows, given the log-prob of the target and the entropy of each, in their precision.

    logp, entropies: [N], any finite value on ignored rows. `loss`, `losses` and `kl` are differentiable in both by
    autograd; they and the flags are zero on ignored rows.
    """
    s = settings
    policy, world_model = rows.kinds == POLICY, rows.kinds == WORLD_MODEL
    live = policy | world_model
    zero = torch.zeros_like(logp)

    def column(x: Tensor | None, where: Tensor, other: float) -> Tensor:
        return torch.full_like(logp, other) if x is None else torch.where(where, x.to(logp.dtype), other)

    advantages = column(rows.advantages, policy, 0.0)
    importance = column(rows.importance, policy, 1.0)
    old = torch.where(policy, column(rows.old_logprobs, policy, 0.0), logp.detach())
    ratio = torch.exp(torch.clamp(logp - old, -20.0, 20.0))
    unclipped = -advantages * ratio
    clipped = -advantages * torch.clamp(ratio, 1.0 - s.clip_low, 1.0 + s.clip_high)
    is_clipped = policy & (clipped > unclipped)
    surrogate = torch.where(is_clipped, clipped, unclipped)
    is_dual = torch.zeros_like(is_clipped)
    if s.dual_clip is not None:
        bound = -advantages * s.dual_clip
        is_dual = policy & (advantages < 0) & (surrogate > bound)
        surrogate = torch.where(is_dual, bound, surrogate)
    kl = zero
    if rows.ref_logprobs is not None:
        ref = torch.where(policy, column(rows.ref_logprobs, policy, 0.0), logp.detach())
        gap = torch.clamp(ref - logp, -20.0, 20.0)
        kl = torch.where(policy, torch.expm1(gap) - gap, zero)
        if s.kl_clamp is not None:
            kl = torch.clamp(kl, max=s.kl_clamp)
    policy_loss = importance * surrogate + s.kl_coef * kl - s.entropy_coef * entropies

    p = logp.exp()
    saturated = world_model & (p >= s.tau)
    if s.wm_loss == "ce":
        wm_loss = -logp
    elif s.wm_loss == "mae":
        wm_loss = -torch.expm1(logp)
    else:
        wm_loss = torch.where(saturated, torch.full_like(p, 1.0 - s.tau), 1.0 - p)

    losses = torch.where(policy, policy_loss, torch.where(world_model, wm_loss, zero))
    losses = losses * torch.where(live, rows.weights.to(logp.dtype), zero)
    flags = (
        CLIPPED * (is_clipped & ~is_dual).to(torch.uint8)
        + SATURATED * saturated.to(torch.uint8)
        + DUAL_CLIPPED * is_dual.to(torch.uint8)
    )
    return LossOutput(losses.sum(), losses, logp, entropies, kl, flags)
