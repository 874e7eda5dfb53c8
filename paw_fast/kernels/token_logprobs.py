"""Computes the log-prob of a target, the entropy and the log-sum-exp of every row of logits. See csrc/token_logprobs.h.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from paw_fast.kernels import native


class TokenLogprobs(NamedTuple):
    logprobs: Tensor  # [N] fp32
    entropies: Tensor  # [N] fp32, natural units, over the whole (valid) vocabulary
    lse: Tensor  # [N] fp32, log-sum-exp of the logits after softcap and temperature


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    softcap: float | None = None,
    valid_vocab: int | None = None,
    inplace_backward: bool = False,
) -> TokenLogprobs:
    """Log-probability of `targets`, entropy and log-sum-exp per row, from one read of the logits.

    logits       [N, V] fp32, bf16 or fp16; rows contiguous, row stride free. All maths in fp32 or better.
    targets      [N] int64 in [0, valid_vocab). Outside: IndexError on the CPU, NaN in that row on CUDA.
    temperature  the distribution is softmax(softcap(logits) / temperature).
    softcap      c: logits become c * tanh(logits / c) first. None: left as they are.
    valid_vocab  columns from here on are padding: outside the softmax, their gradient zero. None: V.
    inplace_backward  the backward writes the gradient over `logits` instead of allocating as much again. Autograd
                      then complains when anything else saved them; the backward runs once.

    Differentiable in all three outputs. A row with a NaN, or with nothing but -inf, gives NaN in that row alone.
    Raises ValueError for shapes, dtypes, devices; RuntimeError where the kernel cannot run.

    >>> token_logprobs(torch.zeros(1, 4), torch.tensor([2])).logprobs
    tensor([-1.3863])
    """
    return TokenLogprobs(
        *torch.ops.paw_fast.token_logprobs(
            logits,
            targets,
            temperature,
            0.0 if softcap is None else softcap,
            logits.shape[-1] if valid_vocab is None else valid_vocab,
            inplace_backward,
        )
    )


_OP = native.register("token_logprobs", "token_logprobs", "token_logprobs_backward")
_MAP = "float temperature, float softcap, int valid_vocab"
native.LIBRARY.define(
    f"token_logprobs(Tensor logits, Tensor targets, {_MAP}, bool inplace_backward) -> (Tensor, Tensor, Tensor)"
)
_BACKWARD_ARGS = (
    "Tensor targets, Tensor logprobs, Tensor entropies, Tensor lse, "
    f"Tensor? grad_logprobs, Tensor? grad_entropies, Tensor? grad_lse, {_MAP}"
)
native.LIBRARY.define(f"token_logprobs_backward(Tensor logits, {_BACKWARD_ARGS}) -> Tensor")
native.LIBRARY.define(f"token_logprobs_backward_(Tensor(a!) logits, {_BACKWARD_ARGS}) -> ()")


def _check(logits: Tensor, targets: Tensor, temperature: float, softcap: float, valid_vocab: int) -> Tensor:
    native.check_map(_OP, temperature, softcap or None)
    native.check_logits(_OP, logits, valid_vocab)
    checked = native.check_vector(_OP, "targets", targets, logits, torch.int64)
    assert checked is not None
    return checked


def _forward(
    logits: Tensor, targets: Tensor, temperature: float, softcap: float, valid_vocab: int, inplace_backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    targets = _check(logits, targets, temperature, softcap, valid_vocab)
    native.check_targets(_OP, targets, valid_vocab)
    rows = logits.shape[0]
    logprobs, entropies, lse = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3))
    native.call(
        _OP, "token_logprobs", logits.device,
        {
            **native.matrix_fields(logits), **native.map_fields(temperature, softcap, valid_vocab),
            "targets": targets, "logprobs": logprobs, "entropies": entropies, "lse": lse,
        },
    )  # fmt: skip
    return logprobs, entropies, lse


def _forward_fake(
    logits: Tensor, targets: Tensor, temperature: float, softcap: float, valid_vocab: int, inplace_backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    def row() -> Tensor:
        return logits.new_empty(logits.shape[0], dtype=torch.float32)

    return row(), row(), row()


def _run_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, logprobs: Tensor, entropies: Tensor, lse: Tensor,
    grad_logprobs: Tensor | None, grad_entropies: Tensor | None, grad_lse: Tensor | None,
    temperature: float, softcap: float, valid_vocab: int,
) -> None:  # fmt: skip
    targets = _check(logits, targets, temperature, softcap, valid_vocab)
    vectors = {
        "logprobs": logprobs, "entropies": entropies, "lse": lse,
        "grad_logprobs": grad_logprobs, "grad_entropies": grad_entropies, "grad_lse": grad_lse,
    }  # fmt: skip
    checked = {name: native.check_vector(_OP, name, v, logits, torch.float32) for name, v in vectors.items()}
    native.call(
        _OP, "token_logprobs_backward", logits.device,
        {
            **native.matrix_fields(logits), **native.map_fields(temperature, softcap, valid_vocab), **checked,
            "grad": grad, "grad_stride": grad.stride(0), "targets": targets,
        },
    )  # fmt: skip


def _backward(logits: Tensor, *args: Any) -> Tensor:
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _run_backward(grad, logits, *args)
    return grad


def _backward_inplace(logits: Tensor, *args: Any) -> None:
    _run_backward(logits, logits, *args)
    native.bump_version(logits)


for _key in ("CPU", "CUDA"):
    native.LIBRARY.impl("token_logprobs", _forward, _key)
    native.LIBRARY.impl("token_logprobs_backward", _backward, _key)
    native.LIBRARY.impl("token_logprobs_backward_", _backward_inplace, _key)
torch.library.register_fake("paw_fast::token_logprobs", _forward_fake, lib=native.LIBRARY)


@torch.library.register_fake("paw_fast::token_logprobs_backward", lib=native.LIBRARY)
def _backward_fake(logits: Tensor, *args: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@torch.library.register_fake("paw_fast::token_logprobs_backward_", lib=native.LIBRARY)
def _backward_inplace_fake(logits: Tensor, *args: Any) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, targets, *ctx.map, ctx.inplace = inputs
    if ctx.inplace and logits.requires_grad and logits.is_leaf:
        raise ValueError(f"{_OP}: inplace_backward would overwrite a leaf tensor: pass inplace_backward=False")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, *output)


def _autograd(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    logits, targets, logprobs, entropies, lse = ctx.saved_tensors
    if all(g is None for g in grads):
        return (None,) * 6
    args = (targets, logprobs, entropies, lse, *grads, *ctx.map)
    if ctx.inplace:
        grad = logits.detach()
        torch.ops.paw_fast.token_logprobs_backward_(grad, *args)
    else:
        grad = torch.ops.paw_fast.token_logprobs_backward(logits, *args)
    return grad, None, None, None, None, None


torch.library.register_autograd("paw_fast::token_logprobs", _autograd, setup_context=_setup_context, lib=native.LIBRARY)
