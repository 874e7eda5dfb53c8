"""Runs the models on one micro-batch: hidden states, the LM head on the rows with a loss, the fused loss, gradients.

T packed tokens, N rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from paw_fast import kernels
from paw_fast.kernels import LossOutput, LossRows, LossSettings
from paw_fast.kernels.linear_paw_loss import row_length
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
    return max(1, logits_budget_bytes // _row_bytes(policy.lm_head.weight))


def _row_bytes(weight: Tensor) -> int:
    """Bytes of a row of logits in the buffer of `linear_paw_loss`, whose rows are aligned."""
    return row_length(weight.shape[0], weight.dtype) * weight.element_size()


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
    softcap, divisor = logit_map(policy.model)

    def of_head(head: torch.nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for part, targets in zip(hidden.split(chunk), batch.rows.targets.split(chunk), strict=True):
            out = kernels.token_logprobs(head(part), targets, temperature * divisor, softcap=softcap)
            logprobs.append(out.logprobs)
            entropies.append(out.entropies)
        return torch.cat(logprobs).cpu(), torch.cat(entropies)

    def forward() -> tuple[Tensor, Tensor, Tensor | None]:
        hidden = row_hidden(policy, batch)
        return *policy.with_head(of_head, hidden), values(hidden).cpu() if values else None

    return policy.run(forward)


@torch.no_grad()
def predict(policy: Policy, batch: PackedBatch, chunk: int) -> tuple[Tensor, Tensor]:
    """For every row: the target's log-probability [N] at temperature 1, and whether it is the most likely token [N]."""
    softcap, divisor = logit_map(policy.model)

    def of_head(head: torch.nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, hits = [], []
        for part, targets in zip(hidden.split(chunk), batch.rows.targets.split(chunk), strict=True):
            logits = head(part)
            hits.append(logits.argmax(-1) == targets)
            logprobs.append(kernels.token_logprobs(logits, targets, divisor, softcap=softcap).logprobs)
        return torch.cat(logprobs).cpu(), torch.cat(hits).cpu()

    return policy.run(lambda: policy.with_head(of_head, row_hidden(policy, batch)))


def backward(
    policy: Policy, batch: PackedBatch, settings: LossSettings, chunk: int,
    extra: Callable[[Tensor], Tensor] | None = None,
) -> RowResults:  # fmt: skip
    """Adds the gradient of the micro-batch's summed row losses to the parameters.

    `extra` maps the rows' hidden states [N, H] to a further loss, whose gradient is added too (a shared critic).

    At most `chunk` rows of logits exist at a time, and the gradient replaces them in place. A plain linear head is
    part of the fused op; any other (LoRA, hooks, a quantized one) is called as a module.
    """
    softcap, divisor = logit_map(policy.model)
    settings = dataclasses.replace(
        settings, softcap=softcap, temperature=settings.temperature * divisor,
        wm_temperature=settings.wm_temperature * divisor,
    )  # fmt: skip

    def of_head(head: torch.nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor | None, list[tuple[Tensor, ...]]]:
        return _head_losses(head, hidden, batch.rows, settings, chunk, extra)

    # Plain tuples: the hooks of a sharded policy look for tensors in them.
    root, gradient, columns = policy.run(lambda: policy.with_head(of_head, row_hidden(policy, batch)))
    if root.requires_grad:
        root.backward(gradient)
    return RowResults(*(torch.cat(column).cpu() for column in zip(*columns, strict=True)))


def _head_losses(
    head: torch.nn.Module, hidden: Tensor, rows: LossRows, settings: LossSettings, chunk: int,
    extra: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor | None, list[tuple[Tensor, ...]]]:  # fmt: skip
    """The tensor from which to go backward, its gradient (None for 1), and the columns of `RowResults` in chunks."""
    if _is_plain(head) and hidden.dtype == head.weight.dtype:
        size = chunk * _row_bytes(head.weight)
        out = kernels.linear_paw_loss(hidden, head.weight, rows, settings, bias=head.bias, chunk_bytes=size)
        return out.loss if extra is None else out.loss + extra(hidden), None, [_columns(out)]
    # The head's chunks go backward one by one into this leaf, and the backbone once.
    leaf = hidden.detach().requires_grad_()
    columns = []
    for start in range(0, len(leaf), chunk):
        out = kernels.paw_loss(head(leaf[start : start + chunk]), _slice(rows, start, start + chunk), settings)
        out.loss.backward()
        columns.append(_columns(out))
    if extra is not None:
        extra(leaf).backward()
    return hidden, leaf.grad, columns


def _columns(out: LossOutput) -> tuple[Tensor, ...]:
    return tuple(getattr(out, f.name) for f in dataclasses.fields(RowResults))


def _is_plain(head: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    """Whether calling `head` is nothing but `x @ weight.T + bias`."""
    hooks = (head._forward_pre_hooks, head._forward_hooks, head._backward_pre_hooks, head._backward_hooks)
    return type(head) is torch.nn.Linear and "forward" not in vars(head) and not any(hooks)


def _slice(rows: LossRows, start: int, end: int) -> LossRows:
    values: dict[str, Any] = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    part: dict[str, Any] = {k: None if v is None else v[start:end] for k, v in values.items()}
    return LossRows(**part)
