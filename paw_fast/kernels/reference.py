"""Implements the formulas of the ops in plain torch, at any precision, as the reference of tests and benchmarks.

Nothing here is fast or fused. Use float64 logits for exact results. Legend: N rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paw_fast.kernels.paw_loss import POLICY, WORLD_MODEL, LossOutput, LossRows, LossSettings
from paw_fast.kernels.row_losses import row_losses
from paw_fast.kernels.select_transitions import Selection
from paw_fast.kernels.token_logprobs import TokenLogprobs


def token_logprobs_reference(
    logits: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    softcap: float | None = None,
    valid_vocab: int | None = None,
) -> TokenLogprobs:
    """As `token_logprobs`, in the logits' own precision, out of place and differentiable; temperature also [N, 1]."""
    z = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    z = z[:, :valid_vocab] / temperature
    lse = torch.logsumexp(z, dim=-1)
    all_logprobs = torch.log_softmax(z, dim=-1)
    # 0 * (-inf) is 0 here, in the value and in the gradient.
    finite = torch.where(all_logprobs == -torch.inf, torch.zeros_like(all_logprobs), all_logprobs)
    entropies = -(all_logprobs.exp() * finite).sum(-1)
    return TokenLogprobs(all_logprobs.gather(-1, targets[:, None])[:, 0], entropies, lse)


def paw_loss_reference(logits: Tensor, rows: LossRows, settings: LossSettings) -> LossOutput:
    """As `paw_loss`, in the logits' own precision, out of place: `loss` is differentiable in `logits` by autograd."""
    s, world_model = settings, rows.kinds == WORLD_MODEL
    live = (rows.kinds == POLICY) | world_model
    # Ignored rows may hold anything: they are replaced before the maths, so that their gradient is zero.
    safe = torch.where(live[:, None], logits, torch.zeros_like(logits))
    targets = torch.where(live, rows.targets, torch.zeros_like(rows.targets))
    temperatures = torch.where(world_model, logits.new_tensor(s.wm_temperature), logits.new_tensor(s.temperature))
    logp, entropies, _ = token_logprobs_reference(
        safe, targets, temperatures[:, None], softcap=s.softcap, valid_vocab=s.valid_vocab
    )
    out = row_losses(logp, entropies, rows, s)
    zero = torch.zeros_like(logp)
    return out._replace(
        losses=out.losses.detach(), logprobs=torch.where(live, logp, zero).detach(),
        entropies=torch.where(live, entropies, zero).detach(), kl=out.kl.detach(),
    )  # fmt: skip


def select_transitions_reference(
    entropies: Tensor,
    action_offsets: Tensor,
    observation_offsets: Tensor,
    lambdas: Tensor,
    alpha: float,
    *,
    scores: Tensor | None = None,
    candidates: Tensor | None = None,
    lowest: bool = False,
) -> Selection:
    """As `select_transitions`, by a stable sort. `scores` [M]: ranked in place of the means, as in mode "random"."""
    # `unsafe` leaves out the check of the offsets, which would wait for the device.
    sums = torch.segment_reduce(entropies.double(), "sum", offsets=action_offsets, initial=0, unsafe=True)
    means = (sums / action_offsets.diff().clamp(min=1)).to(entropies.dtype)
    every = torch.ones_like(means, dtype=torch.bool) if candidates is None else candidates
    numbers = every.nonzero()[:, 0]
    order = torch.sort((means if scores is None else scores)[numbers], descending=not lowest, stable=True).indices
    count = min(len(numbers), max(1, math.floor(alpha * len(numbers) + 1e-9)))
    selected = torch.zeros_like(every).index_fill_(0, numbers[order[:count]], True)
    lengths = observation_offsets.diff()
    num_wm_tokens = torch.where(selected, lengths, 0).sum()
    per_transition = torch.where(selected, lambdas, 0.0) / num_wm_tokens.clamp(min=1)
    return Selection(means, selected, torch.repeat_interleave(per_transition, lengths), num_wm_tokens)
