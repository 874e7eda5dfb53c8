"""Registers verl's policy loss `paw` (`actor_rollout_ref.actor.policy_loss.loss_mode=paw`).

verl computes the log-probs of all tokens of a response, also of those that tools or the environment put there, and
masks these out of the policy loss. The loss here adds, for the selected ones among them,

    sum of  lambda_g * cmae(p) / N_WM

whose weights `lambda_g / N_WM` `add_world_model` has put into `rollout_is_weights`, the token weights of verl: they are
read on sampled tokens by verl's own losses, and are free on all others. The kernels are not used: the log-probs are
verl's, and so are its sharded and fused LM heads.

Shapes: B responses of a micro-batch, T tokens of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import get_policy_loss_fn, register_policy_loss

from paw_fast.errors import UserError
from paw_fast.integrations.settings import PawConfig

LOSS_MODE = "paw"


@dataclass
class Settings:
    """What `configure` sets: the settings of PaW, and the name of the policy loss that the world-model loss joins."""

    paw: PawConfig
    inner: str = "vanilla"


settings = Settings(PawConfig())


def configure(paw: PawConfig | None = None, inner: str = "vanilla") -> None:
    """Sets what this process trains with. Call it in a module that verl imports in each of its processes.

    paw    settings of the world-model loss (default: `PawConfig()`)
    inner  the policy loss: a name that verl knows, such as `vanilla`, `gspo` or `cispo`

    Raises `UserError` for a loss that verl does not have.
    """
    if inner == LOSS_MODE:
        raise UserError(f"the inner policy loss is {inner!r} itself, expected one of verl's, such as 'vanilla'")
    try:
        get_policy_loss_fn(inner)
    except ValueError as error:
        raise UserError(f"configure: {error}") from None
    settings.paw, settings.inner = PawConfig() if paw is None else paw, inner


def world_model_loss(logprobs: Tensor, weights: Tensor, kind: str, tau: float) -> Tensor:
    """The weighted sum of the losses of observation tokens: a scalar, in float32 or better.

    logprobs  [B, T] of the tokens under the model
    weights   [B, T], 0 on tokens without a loss
    kind      "cmae": 1 - min(p, tau); "mae": 1 - p; "ce": -log p (PaW, arXiv 2606.02388)

    >>> round(float(world_model_loss(torch.tensor([[0.1, 0.9]]).log(), torch.tensor([[0.5, 0.5]]), "cmae", 0.2)), 4)
    0.85
    """
    picked = weights != 0
    logprobs, weights = logprobs[picked], weights[picked]
    if not logprobs.dtype.is_floating_point or logprobs.dtype in (torch.float16, torch.bfloat16):
        logprobs = logprobs.float()
    if kind == "ce":
        losses = -logprobs
    elif kind == "mae":
        losses = -torch.expm1(logprobs)
    else:
        # As in the kernels, no gradient where p >= tau: neither at the kink.
        losses = torch.where(logprobs.exp() >= tau, torch.full_like(logprobs, 1.0 - tau), -torch.expm1(logprobs))
    return (losses * weights).sum()


@register_policy_loss(LOSS_MODE)
def paw_policy_loss(
    old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor,
    loss_agg_mode: str = "token-mean", config: Any = None, rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    """A policy loss of verl plus the world-model loss. All tensors are [B, T].

    Returns the loss and metrics, as verl's policy losses do. With `PawConfig(enabled=False)` it is the inner loss. The
    world-model loss is a sum over the tokens of an optimizer step, times verl's data-parallel size, by which verl's
    backends divide: it does not depend on `loss_agg_mode` or on how a step is split into micro-batches. Raises
    `UserError` for a batch that `add_world_model` has not prepared.
    """
    inner = get_policy_loss_fn(settings.inner)
    arguments = {
        "old_log_prob": old_log_prob, "log_prob": log_prob, "advantages": advantages, "response_mask": response_mask,
        "loss_agg_mode": loss_agg_mode, "config": config,
    }  # fmt: skip
    paw = settings.paw
    if not paw.enabled:
        return inner(**arguments, rollout_is_weights=rollout_is_weights)
    if rollout_is_weights is None:
        raise UserError(
            "the policy loss paw found no token weights in the batch: use trainer.v1.trainer_mode=paw_sync, or call "
            "paw_fast.integrations.verl.add_world_model(batch, paw) after the advantages are computed"
        )
    sampled = response_mask.bool()
    loss, metrics = inner(**arguments, rollout_is_weights=torch.where(sampled, rollout_is_weights, 0.0))
    weights = torch.where(sampled, 0.0, rollout_is_weights)
    dp_size = (getattr(config, "global_batch_info", None) or {}).get("dp_size", 1)
    loss = loss + world_model_loss(log_prob, weights, paw.loss, paw.tau) * dp_size
    return loss, {**metrics, **_metrics(log_prob.detach(), weights, paw.tau)}


def _metrics(logprobs: Tensor, weights: Tensor, tau: float) -> dict[str, float]:
    p = logprobs[weights != 0].float().exp()
    if len(p) == 0:  # a micro-batch without one: verl averages each metric over those that give it
        return {}
    return {
        "actor/wm_next_observation_error": float(1 - p.mean()),
        "actor/wm_clipped_token_ratio": float((p >= tau).float().mean()),
    }
