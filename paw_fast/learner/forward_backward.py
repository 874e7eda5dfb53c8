"""Runs the models on one micro-batch: hidden states, the LM head on the rows with a loss, the fused loss, gradients.

T packed tokens, N rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paw_fast import kernels
from paw_fast.kernels import LossRows, LossSettings
from paw_fast.models.policy import Policy, logit_map

if TYPE_CHECKING:
    from paw_fast.learner.packing import PackedBatch


@dataclass(frozen=True)
class RowResults:
    """Per-row results of a micro-batch, each [N] on the CPU; `flags` as in `kernels.LossOutput`."""

    losses: Tensor
    logprobs: Tensor
    entropies: Tensor
    kl: Tensor
    flags: Tensor


def rows_per_chunk(policy: Policy, logits_budget_bytes: int) -> int:
    """Number of rows of logits that fit into the budget, at least one."""
    return max(1, logits_budget_bytes // (policy.lm_head.weight.shape[0] * policy.lm_head.weight.element_size()))


def row_hidden(policy: Policy, batch: PackedBatch) -> Tensor:
    """Hidden states [N, H] that the rows read."""
    return policy.hidden(batch.input_ids, batch.position_ids, batch.lengths)[batch.row_tokens]


@torch.no_grad()
def compute_token_stats(
    policy: Policy, batch: PackedBatch, temperature: float, chunk: int, values: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities of the rows' targets, on the CPU, and full-vocabulary entropies, on the model's device: [N]
    each. No gradient.

    `values` maps the rows' hidden states [N, H] to a third result [N] (a critic on the same backbone).
    """
    hidden = row_hidden(policy, batch)
    softcap, divisor = logit_map(policy.model)
    logprobs, entropies = [], []
    for part, targets in zip(hidden.split(chunk), batch.rows.targets.split(chunk), strict=True):
        out = kernels.token_logprobs(policy.lm_head(part), targets, temperature * divisor, softcap=softcap)
        logprobs.append(out.logprobs)
        entropies.append(out.entropies)
    return torch.cat(logprobs).cpu(), torch.cat(entropies), values(hidden).cpu() if values else None


@torch.no_grad()
def predict(policy: Policy, batch: PackedBatch, chunk: int) -> tuple[Tensor, Tensor]:
    """For every row: the target's log-probability [N] at temperature 1, and whether it is the most likely token [N]."""
    hidden = row_hidden(policy, batch)
    softcap, divisor = logit_map(policy.model)
    logprobs, hits = [], []
    for part, targets in zip(hidden.split(chunk), batch.rows.targets.split(chunk), strict=True):
        logits = policy.lm_head(part)
        hits.append(logits.argmax(-1) == targets)
        logprobs.append(kernels.token_logprobs(logits, targets, divisor, softcap=softcap).logprobs)
    return torch.cat(logprobs).cpu(), torch.cat(hits).cpu()


def backward(
    policy: Policy, batch: PackedBatch, settings: LossSettings, chunk: int,
    extra: Callable[[Tensor], Tensor] | None = None,
) -> RowResults:  # fmt: skip
    """Adds the gradient of the micro-batch's summed row losses to the parameters.

    `extra` maps the rows' hidden states [N, H] to a further loss, whose gradient is added too (a shared critic).

    At most `chunk` rows of logits exist at a time, and the gradient replaces them in place. A plain linear head is
    part of the fused op; any other (LoRA, hooks, a quantized one) is called as a module.
    """
    hidden = row_hidden(policy, batch)
    head = policy.lm_head
    softcap, divisor = logit_map(policy.model)
    settings = dataclasses.replace(
        settings, softcap=softcap, temperature=settings.temperature * divisor,
        wm_temperature=settings.wm_temperature * divisor,
    )  # fmt: skip
    if _is_plain(head) and hidden.dtype == head.weight.dtype:
        row_bytes = head.weight.shape[0] * head.weight.element_size()
        out = kernels.linear_paw_loss(
            hidden, head.weight, batch.rows, settings, bias=head.bias, chunk_bytes=chunk * row_bytes
        )
        (out.loss if extra is None else out.loss + extra(hidden)).backward()
        columns = [out]
    else:
        # The head's chunks go backward one by one into this leaf, and the backbone once.
        leaf = hidden.detach().requires_grad_()
        columns = []
        for start in range(0, len(leaf), chunk):
            rows = _slice(batch.rows, start, start + chunk)
            out = kernels.paw_loss(head(leaf[start : start + chunk]), rows, settings)
            out.loss.backward()
            columns.append(out)
        if extra is not None:
            extra(leaf).backward()
        if hidden.requires_grad:
            hidden.backward(leaf.grad)
    names = (f.name for f in dataclasses.fields(RowResults))
    return RowResults(**{name: torch.cat([getattr(out, name) for out in columns]).cpu() for name in names})


def _is_plain(head: torch.nn.Module) -> bool:
    """Whether calling `head` is nothing but `x @ weight.T + bias`."""
    hooks = (head._forward_pre_hooks, head._forward_hooks, head._backward_pre_hooks, head._backward_hooks)
    return type(head) is torch.nn.Linear and "forward" not in vars(head) and not any(hooks)


def _slice(rows: LossRows, start: int, end: int) -> LossRows:
    values: dict[str, Any] = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    part: dict[str, Any] = {k: None if v is None else v[start:end] for k, v in values.items()}
    return LossRows(**part)
