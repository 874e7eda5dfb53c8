"""Computes log-probs, entropies and the world-model loss inside the model's forward, by the fused kernels.

TRL calls the model with `fused_lm_head=True` and gets log-probs in place of logits. `add_paw_head` adds a second such
form, `model(..., paw_mask=...)`: one pass of the backbone, then

    action tokens       kernels.token_logprobs in chunks of rows, recomputed in the backward; any loss of TRL's fits
    observation tokens  kernels.linear_paw_loss on the selected ones alone

Shapes: B sequences, L tokens, C completion tokens, N rows with a loss, H hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import ModelOutput

from paw_fast import kernels
from paw_fast.kernels import SATURATED, WORLD_MODEL, LossRows, LossSettings
from paw_fast.kernels.linear_paw_loss import chunk_rows, default_chunk_bytes
from paw_fast.models.policy import logit_map


@dataclass
class PawHeadOutput(ModelOutput):
    """What the model returns when it is called with `paw_mask`.

    log_probs  [B, C] of the completion's tokens where the mask is set, else 0
    entropy    [B, C] of the distributions that they were drawn from, nats
    wm_loss    scalar: the weighted sum of the world-model losses; the rest is without gradient
    wm_rows    scalar: number of observation tokens with a loss
    wm_saturated, wm_error  scalars: how many of them have a probability of at least tau; the sum of 1 - p
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    wm_loss: Tensor | None = None
    wm_rows: Tensor | None = None
    wm_saturated: Tensor | None = None
    wm_error: Tensor | None = None


def add_paw_head(model: Any, temperature: float, settings: LossSettings, float32: bool = False) -> None:
    """Lets `model` be called with `paw_mask`; other calls do what they did.

    model        a causal LM of transformers, without a PEFT wrapper
    temperature  of the policy; the world model's is `settings.wm_temperature`
    settings     `wm_loss` and `tau` of the world-model loss
    float32      run the LM head in float32, outside autocast

    Arguments of the new form, beside `input_ids` and `attention_mask` [B, L], of which the last C are the completion:

    paw_mask     [B, C] bool: the tokens whose log-prob is wanted
    wm_weights   [B, C] float or None: weights of observation tokens in the world-model loss; 0 where there is none
    """
    inner = model.forward
    softcap, divisor = logit_map(model)
    wm_settings = LossSettings(
        wm_loss=settings.wm_loss, tau=settings.tau, softcap=softcap, wm_temperature=settings.wm_temperature * divisor
    )

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(
        self: Any, *args: Any, paw_mask: Tensor | None = None, wm_weights: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if paw_mask is None:
            return inner(*args, **kwargs)
        kwargs.pop("labels", None)  # PEFT's wrapper adds it
        input_ids = kwargs["input_ids"]
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        width = paw_mask.shape[1]
        # The hidden state before each token of the completion, and the head in the dtype that its product runs in.
        before, targets = hidden[:, -width - 1 : -1], input_ids[:, -width:]
        head, device = self.get_output_embeddings(), hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        dtype = torch.float32 if float32 else dtype
        weight, bias = head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)
        with torch.autocast(device, enabled=False):
            logprobs, entropies = _token_logprobs(
                before[paw_mask].to(dtype), weight, bias, targets[paw_mask], temperature * divisor, softcap
            )
            output = PawHeadOutput(_spread(paw_mask, logprobs), _spread(paw_mask, entropies))
            if wm_weights is not None:
                _add_world_model(output, before, targets, wm_weights, weight, bias, wm_settings)
        return output

    model.forward = types.MethodType(forward, model)


def _token_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [N], of hidden states [N, H]. At most one chunk of logits exists at a time."""

    def compute(part: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional.linear(part, weight, bias)
        return kernels.token_logprobs(logits, of, temperature, softcap=softcap, inplace_backward=True)[:2]

    if len(hidden) == 0:  # keeps the result connected to the model
        return hidden.sum(-1).float(), hidden.sum(-1).float()
    size = chunk_rows(len(hidden), weight, default_chunk_bytes(weight.device))
    parts = []
    for part, of in zip(hidden.split(size), targets.split(size), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(compute, part, of, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(compute(part, of))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _spread(mask: Tensor, values: Tensor) -> Tensor:
    """values [N] at the places of the mask [B, C], in order; 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _add_world_model(
    output: PawHeadOutput, before: Tensor, targets: Tensor, weights: Tensor, weight: Tensor, bias: Tensor | None,
    settings: LossSettings,
) -> None:  # fmt: skip
    """Sets the world-model fields of `output`. before [B, C, H], targets and weights [B, C]."""
    picked = weights != 0
    unused = weights.new_zeros(int(picked.sum()), dtype=torch.float32)
    rows = LossRows(
        targets[picked], torch.full_like(unused, WORLD_MODEL, dtype=torch.uint8), weights[picked].float(),
        old_logprobs=unused, advantages=unused,
    )  # fmt: skip
    found = kernels.linear_paw_loss(before[picked].to(weight.dtype), weight, rows, settings, bias=bias)
    output.wm_loss = found.loss
    output.wm_rows = unused.new_tensor(float(len(unused)))
    output.wm_saturated = (found.flags & SATURATED).ne(0).sum().float()
    output.wm_error = (1 - found.logprobs.double().exp()).sum().float()
