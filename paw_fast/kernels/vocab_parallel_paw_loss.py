"""Computes `linear_paw_loss` on an LM head whose vocabulary is split over the processes of a group.

    each rank:   logits_r = hidden @ W_r^T        its slice of the vocabulary, in chunks of rows
                 log-sum-exp, entropy, target     token_logprobs on the slice (native), or torch in float64
    exchanged:   maximum of the log-sum-exps, then sums of 3 numbers a row      all-reduce of [C] and [3, C]
    each rank:   logits_r <- d(loss)/d(logits_r)     its backward, with the exchanged log-sum-exp and entropy, in place
                 d_weight_r += gradient^T @ hidden      d_hidden_r = gradient @ W_r
    exchanged:   sum of d_hidden_r, once                                        all-reduce of [N, H]

With lse_r and H_r of the slices: lse = log sum_r exp(lse_r), the mean logit E = sum_r exp(lse_r - lse) (lse_r - H_r),
the entropy H = lse - E. The losses of rows are computed from those numbers alone, on every rank (`row_losses`). As
Megatron-LM's vocabulary-parallel cross-entropy (arXiv 1909.08053), with the losses and the entropy of this package.

Legend: N rows, C rows of a chunk, H hidden size, V vocabulary, V_r columns of a rank's slice, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from paw_fast.kernels import native
from paw_fast.kernels.linear_paw_loss import accumulate, default_chunk_bytes
from paw_fast.kernels.paw_loss import IGNORED, POLICY, WORLD_MODEL, LossOutput, LossRows, LossSettings
from paw_fast.kernels.row_losses import row_losses
from paw_fast.kernels.token_logprobs import token_logprobs

Group = Any
"""A `torch.distributed.ProcessGroup`; None is the default group, or this process alone where there is none."""


def vocab_slice(vocab: int, rank: int, ranks: int) -> slice:
    """The part of a vocabulary that a rank holds, as `torch.chunk` and DTensor's `Shard(0)` split it: parts of
    ceil(V / R), of which the last may be smaller or empty.

    >>> [vocab_slice(10, rank, 4) for rank in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 9, None), slice(9, 10, None)]
    """
    each = -(-vocab // ranks)
    return slice(min(vocab, rank * each), min(vocab, (rank + 1) * each))


def vocab_parallel_paw_loss(
    hidden: Tensor, weight: Tensor, rows: LossRows, settings: LossSettings, *, group: Group = None,
    sizes: Sequence[int] | None = None, chunk_bytes: int | None = None, bias: Tensor | None = None,
) -> LossOutput:  # fmt: skip
    """`linear_paw_loss` of the whole head, computed by the ranks of `group`, each of which holds a slice of it.

    hidden, rows, settings  as there, the same on all ranks (gather those of data-parallel ranks first)
    weight, bias            [V_r, H] and [V_r] or None: this rank's columns of the vocabulary, in order of the ranks
    sizes                   V_r of all ranks; None asks them, which waits for all
    chunk_bytes             size of the chunk of logits on the rank with the most columns. None: `default_chunk_bytes`

    Returns the losses, log-probs and entropies of the whole vocabulary on every rank: do not add them up.
    Differentiable in hidden, weight and bias through `loss`: the gradient of `hidden` is the whole one on all ranks
    (summed in float32 at least), that of `weight` this rank's. The backward runs once. Every rank must call this, with
    and without gradients alike. Exchanges 4 numbers a row and, where hidden has a gradient, N x H. Raises ValueError
    for shapes and dtypes, and IndexError for a target outside of the vocabulary on the CPU, as `linear_paw_loss`.

    >>> rows = LossRows(torch.tensor([0]), torch.tensor([2], dtype=torch.uint8), torch.ones(1),
    ...                 old_logprobs=torch.zeros(1), advantages=torch.zeros(1))
    >>> vocab_parallel_paw_loss(torch.zeros(1, 3), torch.zeros(10, 3), rows, LossSettings(tau=0.2)).loss
    tensor(0.9000)
    """
    split = _Split.make(weight, group, sizes)
    _check(hidden, weight, bias, rows, settings, split)
    if chunk_bytes is None:
        chunk_bytes = default_chunk_bytes(weight.device)
    if chunk_bytes <= 0:
        raise ValueError(f"{_NAME}: chunk_bytes must be positive, got {chunk_bytes}")
    size = max(1, chunk_bytes // max(1, max(split.sizes) * weight.element_size()))
    return LossOutput(*_Loss.apply(hidden, weight, bias, rows, settings, split, size))  # type: ignore[misc]


_NAME = "vocab_parallel_paw_loss"


@dataclass(frozen=True)
class _Split:
    """Which columns of the vocabulary this rank holds, and the group that holds them all."""

    group: Group
    sizes: tuple[int, ...]
    rank: int

    @staticmethod
    def make(weight: Tensor, group: Group, sizes: Sequence[int] | None) -> _Split:
        if not dist.is_available() or not dist.is_initialized():
            found, rank = (len(weight),), 0
        else:
            rank, ranks = dist.get_rank(group), dist.get_world_size(group)
            if sizes is None:
                counts = [torch.zeros(1, dtype=torch.int64, device=weight.device) for _ in range(ranks)]
                dist.all_gather(counts, torch.tensor([len(weight)], device=weight.device), group=group)
                sizes = [int(one) for one in counts]
            if len(sizes) != ranks:
                raise ValueError(f"{_NAME}: got {len(sizes)} sizes, expected one for each of {ranks} ranks")
            found = tuple(sizes)
        if found[rank] != len(weight):
            raise ValueError(f"{_NAME}: weight has {len(weight)} rows, expected sizes[{rank}] = {found[rank]}")
        return _Split(group, found, rank)

    @property
    def start(self) -> int:
        return sum(self.sizes[: self.rank])

    def reduce(self, tensor: Tensor, largest: bool = False) -> Tensor:
        """The sum or the maximum over the ranks, in place."""
        if len(self.sizes) > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=self.group)
        return tensor


def _check(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: LossRows, settings: LossSettings, split: _Split
) -> None:
    if settings.kl_coef != 0.0 and rows.ref_logprobs is None:
        raise ValueError(f"{_NAME}: kl_coef is {settings.kl_coef} but ref_logprobs is None")
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{_NAME}: hidden must be [N, H] and weight [V_r, H], got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        raise ValueError(f"{_NAME}: hidden, weight and bias must share a dtype, got {hidden.dtype} and {weight.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{_NAME}: bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    vocab = sum(split.sizes)
    if settings.valid_vocab is not None and settings.valid_vocab > vocab:
        raise ValueError(f"{_NAME}: valid_vocab must be at most {vocab}, got {settings.valid_vocab}")
    for name in ("targets", "kinds", "weights", "old_logprobs", "advantages", "ref_logprobs", "importance"):
        vector = getattr(rows, name)
        if vector is not None and vector.shape != hidden.shape[:1]:
            raise ValueError(f"{_NAME}: {name} must be [{len(hidden)}] like hidden, got {tuple(vector.shape)}")
    if not hidden.is_cuda and len(hidden):
        if int(rows.kinds.max()) > WORLD_MODEL:
            raise ValueError(f"{_NAME}: kinds must be 0, 1 or 2, got {int(rows.kinds.max())}")
        live, limit = rows.targets[rows.kinds != IGNORED], settings.valid_vocab or vocab
        if len(live) and not 0 <= int(live.min()) <= int(live.max()) < limit:
            raise IndexError(f"{_NAME}: targets must be in [0, {limit}), got {int(live.min())} to {int(live.max())}")


@dataclass(frozen=True)
class _Map:
    """How the logits of a slice are mapped: softcap, then temperature; columns from `valid` on are padding."""

    softcap: float | None
    temperature: float
    valid: int

    def __call__(self, logits: Tensor) -> Tensor:
        """Mapped logits in float32 at least, a new tensor."""
        z = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        if self.softcap is not None:
            z = z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z.div_(self.temperature)

    def slope(self, z: Tensor) -> Tensor | float:
        """d(mapped)/d(logits), where `z` is what is mapped to."""
        if self.softcap is None:
            return 1.0 / self.temperature
        return (1.0 - (z * (self.temperature / self.softcap)) ** 2) / self.temperature


def _statistics(logits: Tensor, at: Tensor, here: Tensor, mapping: _Map, split: _Split) -> tuple[Tensor, ...]:
    """Log-prob of the target, entropy and log-sum-exp of each row [C] over the whole vocabulary, and the mapped logit
    of the column `at`.

    logits: [C, V_r]. at: column of the target in this slice [C], where `here` is True.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if mapping.valid == 0:  # an empty slice, or nothing but padding
        lse = torch.full(at.shape, -math.inf, dtype=dtype, device=at.device)
        mean = own = torch.zeros_like(lse)
    else:
        if logits.dtype in native.DTYPES:
            found = token_logprobs(logits, at, mapping.temperature, softcap=mapping.softcap, valid_vocab=mapping.valid)
            lse, entropy = found.lse, found.entropies
            own = mapping(logits.gather(1, at[:, None]))[:, 0]
        else:
            z = mapping(logits[:, : mapping.valid])
            lse, own = torch.logsumexp(z, -1), z.gather(1, at[:, None])[:, 0]
            logprobs = z.sub_(lse[:, None])
            entropy = -(logprobs.exp() * logprobs.masked_fill(logprobs == -math.inf, 0.0)).sum(-1)
        mean = lse - entropy
    largest = split.reduce(lse.clone(), largest=True)
    share = torch.exp(lse - largest)
    sums = torch.stack([share, torch.where(share > 0, share * mean, 0.0), torch.where(here, own, 0.0)])
    total, mean, target = split.reduce(sums).unbind(0)
    lse = largest + total.log()
    return target - lse, lse - mean / total, lse, own


def _write_gradient(
    logits: Tensor, at: Tensor, here: Tensor, mapping: _Map, stats: tuple[Tensor, ...], by: tuple[Tensor, ...],
    scale: float,
) -> None:  # fmt: skip
    """Overwrites logits [C, V_r] by d(loss)/d(logits). by: d(loss)/d(log-prob) and d(loss)/d(entropy), [C] each.

    With p = exp(z - lse):  d(logp_t)/dz_j = [j = t] - p_j,   dH/dz_j = -p_j (log p_j + H),   d(lse)/dz_j = p_j, so that
    a target on another rank is a gradient of -lse here.
    """
    (_, entropy, lse, own), (d_logprob, d_entropy), valid = stats, by, mapping.valid
    if valid and logits.dtype in native.DTYPES:
        torch.ops.paw_fast.token_logprobs_backward_(
            logits, at, own - lse, entropy, lse, torch.where(here, d_logprob, 0.0) * scale, d_entropy * scale,
            torch.where(here, 0.0, -d_logprob) * scale, mapping.temperature, mapping.softcap or 0.0, valid,
        )  # fmt: skip
        return
    z = mapping(logits[:, :valid])
    slope = mapping.slope(z)
    logprobs = z.sub_(lse[:, None])
    gradient = logprobs.exp()
    # exp(-inf) * -inf would be NaN; the product is 0.
    inner = logprobs.clamp_(min=-1e4).add_(entropy[:, None]).mul_(d_entropy[:, None]).add_(d_logprob[:, None])
    gradient = gradient.mul_(inner).neg_()
    if valid:
        gradient.scatter_add_(1, at[:, None], torch.where(here, d_logprob, 0.0)[:, None])
    logits[:, :valid] = gradient.mul_(slope).mul_(scale)
    logits[:, valid:] = 0


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: LossRows, settings: LossSettings,
        split: _Split, size: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        wanted = tuple(ctx.needs_input_grad[:3])
        outputs, gradients = _run(hidden, weight, bias, rows, settings, split, size, wanted)
        ctx.gradients, ctx.spent = gradients, False
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError(f"{_NAME}: the gradient has been handed over already: call {_NAME} again")
        gradients, ctx.gradients, ctx.spent = ctx.gradients, None, True
        return (
            *(None if one is None else one.mul_(upstream.to(one.dtype)) for one in gradients),
            None,
            None,
            None,
            None,
        )


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: LossRows, settings: LossSettings, split: _Split,
    size: int, wanted: tuple[bool, ...],
) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:  # fmt: skip
    """Outputs as in `LossOutput`, and the gradients of hidden, weight and bias in their dtypes (None: not wanted)."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    count, columns = len(hidden), len(weight)
    losses, logprobs, entropies, kl = (torch.zeros(count, dtype=dtype, device=hidden.device) for _ in range(4))
    flags = torch.zeros(count, dtype=torch.uint8, device=hidden.device)
    d_hidden = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device) if wanted[0] else None
    d_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if wanted[1] else None
    d_bias = torch.zeros(columns, dtype=dtype, device=weight.device) if wanted[2] else None
    vocab = sum(split.sizes)
    valid = min(max(0, (vocab if settings.valid_vocab is None else settings.valid_vocab) - split.start), columns)
    for kind, temperature in ((POLICY, settings.temperature), (WORLD_MODEL, settings.wm_temperature)):
        mapping = _Map(settings.softcap, temperature, valid)
        # Rows of one kind have one temperature. Every rank has the same rows, so all take the same chunks.
        for index in (rows.kinds == kind).nonzero()[:, 0].split(size):
            part, picked = hidden[index], _pick(rows, index)
            logits = part @ weight.T if bias is None else torch.addmm(bias, part, weight.T)
            at = picked.targets - split.start
            here = (at >= 0) & (at < columns)
            at = torch.where(here, at, 0)
            stats = _statistics(logits, at, here, mapping, split)
            with torch.enable_grad():
                leaves = tuple(one.detach().requires_grad_() for one in stats[:2])
                out = row_losses(*leaves, picked, settings)
                by = torch.autograd.grad(out.losses.sum(), leaves, allow_unused=True, materialize_grads=True)
            for whole, found in zip((losses, logprobs, entropies, kl, flags), out[1:], strict=True):
                whole[index] = found.detach()
            if not any(wanted):
                continue
            if not hidden.is_cuda:  # skip rows without gradient; a GPU would have to wait for their number
                live = ((by[0] != 0) | (by[1] != 0)).nonzero()[:, 0]
                logits, at, here, index, part = logits[live], at[live], here[live], index[live], part[live]
                stats, by = tuple(one[live] for one in stats), (by[0][live], by[1][live])
            _write_gradient(logits, at, here, mapping, stats, by, settings.grad_scale)
            if d_hidden is not None:
                d_hidden[index] = (logits @ weight).to(dtype)
            if d_weight is not None:
                accumulate(d_weight, logits, part, first=False)
            if d_bias is not None:
                d_bias += logits.sum(0, dtype=dtype)
    if d_hidden is not None:
        split.reduce(d_hidden)
    gradients = [None if one is None else one.to(hidden.dtype) for one in (d_hidden, d_weight, d_bias)]
    loss = losses.sum(dtype=torch.float64).to(dtype)
    return (loss, losses, logprobs, entropies, kl, flags), gradients


def _pick(rows: LossRows, index: Tensor) -> LossRows:
    take = lambda one: None if one is None else one[index]  # noqa: E731
    return LossRows(
        rows.targets[index], rows.kinds[index], rows.weights[index], rows.old_logprobs[index], rows.advantages[index],
        take(rows.ref_logprobs), take(rows.importance),
    )  # fmt: skip
