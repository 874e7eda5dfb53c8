"""Computes LM head and loss together, in chunks of rows, so that the logits [N, V] never exist as a whole.

    for each chunk of rows:   logits = hidden @ W^T (+ bias)        matrix product, torch
                              logits <- d(loss)/d(logits)           paw_loss, in place
                              d_hidden = logits @ W                 matrix product
                              d_weight += logits^T @ hidden         matrix product, summed in fp32 inside it

The gradients are ready when the forward ends; the backward only multiplies them by the upstream scalar. It takes 6 N
H V flops; nothing is computed twice. On the CPU the last two products skip rows whose gradient is known to be zero
(mainly saturated ones: most world-model rows of a trained model), which saves 4 H V flops each; on a GPU the host
would have to wait for their number. Legend: N rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paw_fast.kernels import native
from paw_fast.kernels.paw_loss import IGNORED, SATURATED, WM_LOSSES, LossOutput, LossRows, LossSettings, op_arguments

CPU_CHUNK_BYTES = 256 << 20
# On a GPU every chunk but the first reads and writes d_weight once more: few and large ones cost less. This share is
# 2 GiB of 80 GB: 8192 rows of 128k logits in one chunk.
CUDA_CHUNK_SHARE = 0.026
_ROW_ALIGN_BYTES = 128  # of the buffer's rows: products with odd row lengths lose 25 to 40 % of their speed
_WEIGHT_BLOCK = 4096  # rows of d_weight at a time where 16-bit factors are widened by hand
_WORTH_MOVING = 0.25  # least share of rows without gradient for which the others are moved together


def linear_paw_loss(
    hidden: Tensor,
    weight: Tensor,
    rows: LossRows,
    settings: LossSettings,
    *,
    chunk_bytes: int | None = None,
    bias: Tensor | None = None,
) -> LossOutput:
    """`paw_loss(hidden @ weight.T + bias, rows, settings)` with at most one chunk of logits in memory.

    hidden       [N, H] fp32, bf16 or fp16; pass only rows with a loss: on a GPU ignored rows cost as much as others
    weight       [V, H] in the same dtype, tied or not. d_weight is not computed if it does not require grad.
    bias         [V] or None
    chunk_bytes  the logits buffer is at most this large (but at least one row). None: `default_chunk_bytes`

    Overwrites none of its arguments. Differentiable in hidden, weight and bias through `loss`; d_hidden comes in
    hidden's dtype, d_weight and d_bias are summed in fp32 and rounded once to the weight's dtype. The backward runs
    once. Extra memory: one chunk of logits, d_hidden and one fp32 d_weight. Raises ValueError as `paw_loss` does.

    >>> rows = LossRows(torch.tensor([0]), torch.tensor([2], dtype=torch.uint8), torch.ones(1),
    ...                 old_logprobs=torch.zeros(1), advantages=torch.zeros(1))
    >>> linear_paw_loss(torch.zeros(1, 3), torch.zeros(10, 3), rows, LossSettings(tau=0.2)).loss
    tensor(0.9000)
    """
    if settings.kl_coef != 0.0 and rows.ref_logprobs is None:
        raise ValueError(f"linear_paw_loss: kl_coef is {settings.kl_coef} but ref_logprobs is None")
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"linear_paw_loss: hidden must be [N, H] and weight [V, H], got {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        raise ValueError(
            f"linear_paw_loss: hidden, weight and bias must share a dtype, got {hidden.dtype}, {weight.dtype}"
            + ("" if bias is None else f" and {bias.dtype}")
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_paw_loss: bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    if chunk_bytes is None:
        chunk_bytes = default_chunk_bytes(weight.device)
    if chunk_bytes <= 0:
        raise ValueError(f"linear_paw_loss: chunk_bytes must be positive, got {chunk_bytes}")
    grad = torch.is_grad_enabled()
    wanted = [grad and t is not None and t.requires_grad for t in (hidden, weight, bias)]
    # Only shape[-1] and the rows of the first argument are read: the logits themselves do not exist.
    arguments = op_arguments(weight.T, rows, settings)
    outputs = torch.ops.paw_fast.linear_paw_loss(
        hidden, weight, bias, *arguments, chunk_rows(hidden.shape[0], weight, chunk_bytes), *wanted
    )
    return LossOutput(*outputs[:6])


def default_chunk_bytes(device: torch.device) -> int:
    """Returns the size of a chunk of logits: 2.6 % of a GPU's memory (2 GiB of 80 GB), 256 MiB on a CPU."""
    if device.type != "cuda":
        return CPU_CHUNK_BYTES
    return int(CUDA_CHUNK_SHARE * torch.cuda.get_device_properties(device).total_memory)


def row_length(vocab: int, dtype: torch.dtype) -> int:
    """Returns the row stride of the logits buffer in elements: `vocab`, rounded up to 128 bytes.

    >>> row_length(50257, torch.bfloat16), row_length(151936, torch.float32)
    (50304, 151936)
    """
    align = _ROW_ALIGN_BYTES // dtype.itemsize
    return -(-vocab // align) * align


def chunk_rows(num_rows: int, weight: Tensor, chunk_bytes: int) -> int:
    """Returns the number of rows per chunk: as many as fit, evenly distributed, in multiples of 128 if possible."""
    most = max(1, chunk_bytes // (row_length(weight.shape[0], weight.dtype) * weight.element_size()))
    if num_rows <= most:
        return max(1, num_rows)
    if most < 128:
        return most
    chunks = -(-num_rows // (most // 128 * 128))
    return -(-num_rows // (chunks * 128)) * 128


_OP = native.register("linear_paw_loss", "paw_loss", "scale_inplace")
native.LIBRARY.define(
    "linear_paw_loss(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor kinds, Tensor weights, "
    "Tensor old_logprobs, Tensor? ref_logprobs, Tensor advantages, Tensor? importance, float temperature, "
    "float softcap, int valid_vocab, float wm_temperature, float clip_low, float clip_high, float dual_clip, "
    "float kl_coef, float kl_clamp, float entropy_coef, float tau, float grad_scale, int wm_loss, int chunk_rows, "
    "bool need_hidden, bool need_weight, bool need_bias) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _weight_gradient_dtype(weight: Tensor, num: int, size: int) -> torch.dtype:
    """Returns fp32 if several chunks are accumulated. The product of a single chunk is rounded only once anyway."""
    return weight.dtype if weight.is_cuda and num <= size else torch.float32


def accumulate(total: Tensor, gradient: Tensor, hidden: Tensor, first: bool) -> None:
    """total [V, H] = or += gradient^T [V, C] @ hidden [C, H], products and sums in fp32."""
    same = total.dtype == gradient.dtype
    if same and first:
        torch.mm(gradient.T, hidden, out=total)
    elif same:
        total.addmm_(gradient.T, hidden)
    elif gradient.is_cuda:
        # 16-bit factors, fp32 result, added to in the product's own epilogue: no second [V, H] exists.
        torch.addmm(total, gradient.T, hidden, torch.float32, beta=0 if first else 1, out=total)
    else:
        wide = hidden.float()
        for start in range(0, total.shape[0], _WEIGHT_BLOCK):
            block = slice(start, start + _WEIGHT_BLOCK)
            total[block].addmm_(gradient[:, block].T.float(), wide, beta=0 if first else 1)


def _live_rows(kinds: Tensor, weights: Tensor, flags: Tensor, wm_loss: int) -> Tensor | None:
    """Returns the indices of the rows whose gradient may be nonzero; None if skipping the others gains nothing."""
    if kinds.is_cuda:
        return None
    dead = (kinds == IGNORED) | (weights == 0)
    if WM_LOSSES[wm_loss] == "cmae":
        dead |= (flags & SATURATED) != 0
    return (~dead).nonzero().squeeze(1) if int(dead.sum()) >= max(1, _WORTH_MOVING * len(dead)) else None


def _moved_up(matrix: Tensor, rows: Tensor) -> Tensor:
    """Returns `matrix[rows]` for ascending `rows`, computed block by block in the memory of the matrix.

    A block of the result overwrites only rows that no later block reads, since row i of it comes from row i or later.
    """
    block = max(1, len(matrix) // 8)
    for start in range(0, len(rows), block):
        taken = rows[start : start + block]
        matrix[start : start + len(taken)] = matrix[taken]
    return matrix[: len(rows)]


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, kinds: Tensor, weights: Tensor,
    old_logprobs: Tensor, ref_logprobs: Tensor | None, advantages: Tensor, importance: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    *settings, size, need_hidden, need_weight, need_bias = rest
    num, vocab = hidden.shape[0], weight.shape[0]
    vectors = (targets, kinds, weights, old_logprobs, ref_logprobs, advantages, importance)
    for name, vector in zip(
        ("targets", "kinds", "weights", "old_logprobs", "ref_logprobs", "advantages", "importance"),
        vectors,
        strict=True,
    ):
        if vector is not None and vector.shape != (num,):
            raise ValueError(f"{_OP}: {name} must be [{num}] like the hidden states, got {tuple(vector.shape)}")
    d_hidden = torch.empty_like(hidden) if need_hidden else hidden.new_empty(0)
    d_weight = torch.empty(
        weight.shape if need_weight else 0, dtype=_weight_gradient_dtype(weight, num, size), device=weight.device
    )
    if num == 0:
        d_weight.zero_()
    d_bias = torch.zeros(vocab if need_bias else 0, dtype=torch.float32, device=weight.device)
    length = row_length(vocab, hidden.dtype)
    buffer = torch.empty(min(size, num), length, dtype=hidden.dtype, device=hidden.device)[:, :vocab]
    outputs: list[tuple[Tensor, ...]] = []
    for start in range(0, num, size):
        part = slice(start, min(start + size, num))
        logits = buffer[: part.stop - start]
        chunk = hidden[part]
        if bias is None:
            torch.mm(chunk, weight.T, out=logits)
        else:
            torch.addmm(bias, chunk, weight.T, out=logits)
        cut = [None if v is None else v[part] for v in vectors]
        outputs.append(torch.ops.paw_fast.paw_loss_(logits, *cut, *settings)[1:])
        if not (need_hidden or need_weight or need_bias):
            continue
        live = _live_rows(kinds[part], weights[part], outputs[-1][-1], settings[-1])
        if live is not None:
            logits, chunk = _moved_up(logits, live), chunk[live]
            if need_hidden:
                d_hidden[part].zero_().index_copy_(0, live, logits @ weight)
        elif need_hidden:
            torch.mm(logits, weight, out=d_hidden[part])
        if need_weight:
            accumulate(d_weight, logits, chunk, start == 0)
        if need_bias:
            d_bias += logits.sum(0, dtype=torch.float32)
    if outputs:
        losses, logprobs, entropies, kl, flags = (torch.cat(column) for column in zip(*outputs, strict=True))
    else:
        losses, logprobs, entropies, kl = (hidden.new_empty(0, dtype=torch.float32) for _ in range(4))
        flags = hidden.new_empty(0, dtype=torch.uint8)
    loss = losses.sum(dtype=torch.float64).float()
    return loss, losses, logprobs, entropies, kl, flags, d_hidden, d_weight, d_bias


for _key in ("CPU", "CUDA"):
    native.LIBRARY.impl("linear_paw_loss", _run, _key)


@torch.library.register_fake("paw_fast::linear_paw_loss", lib=native.LIBRARY)
def _fake(hidden: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    size, need_hidden, need_weight, need_bias = args[-4:]

    def row(dtype: torch.dtype = torch.float32) -> Tensor:
        return hidden.new_empty(hidden.shape[0], dtype=dtype)

    return (
        hidden.new_empty((), dtype=torch.float32), row(), row(), row(), row(), row(torch.uint8),
        torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
        weight.new_empty(
            weight.shape if need_weight else (0,), dtype=_weight_gradient_dtype(weight, hidden.shape[0], size)
        ),
        weight.new_empty(weight.shape[0] if need_bias else 0, dtype=torch.float32),
    )  # fmt: skip


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[6:])
    ctx.dtype = inputs[1].dtype
    ctx.num_inputs = len(inputs)
    ctx.need = inputs[-3:]
    ctx.spent = False


def _autograd(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    none = (None,) * ctx.num_inputs
    if upstream is None:
        return none
    if ctx.spent:
        raise RuntimeError(f"{_OP}: the gradient has been handed over already: call {_OP} again")
    ctx.spent = True
    gradients: list[Tensor | None] = []
    for gradient, needed in zip(ctx.saved_tensors, ctx.need, strict=True):
        if needed:
            gradient = gradient.detach()
            torch.ops.paw_fast.scale_(gradient if gradient.dim() == 2 else gradient[None], upstream)
            gradients.append(gradient.to(ctx.dtype))
        else:
            gradients.append(None)
    return (*gradients, *none[3:])


torch.library.register_autograd(
    "paw_fast::linear_paw_loss", _autograd, setup_context=_setup_context, lib=native.LIBRARY
)
