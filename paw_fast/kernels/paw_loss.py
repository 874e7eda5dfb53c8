"""Computes the policy and world-model losses of every row of logits, and writes the gradient over the logits.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paw_fast.kernels import native

IGNORED, POLICY, WORLD_MODEL = 0, 1, 2  # LossRows.kinds
CLIPPED, SATURATED, DUAL_CLIPPED = 1, 2, 4  # bits of LossOutput.flags
WM_LOSSES = ("cmae", "mae", "ce")


@dataclass(frozen=True)
class LossRows:
    """The targets of the rows of logits. The caller folds denominators and the world-model weight into `weights`.

    targets        [N] int64 in [0, valid_vocab); any value on ignored rows
    kinds          [N] uint8: IGNORED, POLICY or WORLD_MODEL
    weights        [N] fp32, multiplies the row's whole loss
    old_logprobs   [N] fp32, read on policy rows only, like the next three
    advantages     [N] fp32
    ref_logprobs   [N] fp32, or None where `kl_coef` is 0
    importance     [N] fp32 or None: truncated importance weight of the rollout policy, multiplies the surrogate

    >>> rows = LossRows(torch.tensor([3]), torch.tensor([POLICY], dtype=torch.uint8), torch.ones(1),
    ...                 old_logprobs=torch.zeros(1), advantages=torch.ones(1))
    >>> len(rows.targets)
    1
    """

    targets: Tensor
    kinds: Tensor
    weights: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    importance: Tensor | None = None


@dataclass(frozen=True)
class LossSettings:
    """Hyper-parameters of the row losses; formulas in docs/reference/kernels.md. Raises ValueError for invalid values.

    clip_low, clip_high  the surrogate's ratio is clipped to [1 - clip_low, 1 + clip_high]
    dual_clip            c > 1: the surrogate of a negative advantage is at most -A * c. None: off
    kl_coef              times the k3 estimate of KL(policy || reference)
    kl_clamp             a row's estimate is at most this; above it the term has no gradient (verl: 10). None: off
    entropy_coef         the loss term -entropy_coef * H on policy rows
    wm_loss, tau         "cmae": 1 - min(p, tau); "mae": 1 - p; "ce": -log p
    temperature, softcap, valid_vocab   as in `token_logprobs`; this temperature is that of the policy rows
    wm_temperature       temperature of the world-model rows
    grad_scale           multiplies the written gradient and nothing else: the loss scale of fp16 gradients,
                         which must be applied here, before values underflow to zero

    >>> LossSettings(clip_low=0.2, clip_high=0.28, dual_clip=3.0).wm_loss
    'cmae'
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_coef: float = 0.0
    kl_clamp: float | None = None
    entropy_coef: float = 0.0
    wm_loss: str = "cmae"
    tau: float = 0.2
    temperature: float = 1.0
    softcap: float | None = None
    valid_vocab: int | None = None
    grad_scale: float = 1.0
    wm_temperature: float = 1.0

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"LossSettings: {name} must be {rule}, got {getattr(self, name)!r}")

        need(0.0 <= self.clip_low <= 1.0, "clip_low", "in [0, 1]")
        need(0.0 <= self.clip_high < math.inf, "clip_high", "at least 0")
        need(self.dual_clip is None or 1.0 < self.dual_clip < math.inf, "dual_clip", "more than 1, or None for none")
        need(0.0 <= self.kl_coef < math.inf, "kl_coef", "at least 0")
        need(self.kl_clamp is None or 0.0 < self.kl_clamp < math.inf, "kl_clamp", "positive, or None for none")
        need(-math.inf < self.entropy_coef < math.inf, "entropy_coef", "finite")
        need(self.wm_loss in WM_LOSSES, "wm_loss", f"one of {', '.join(WM_LOSSES)}")
        need(0.0 < self.tau <= 1.0, "tau", "in (0, 1]")
        need(0.0 < self.temperature < math.inf, "temperature", "positive")
        need(0.0 < self.wm_temperature < math.inf, "wm_temperature", "positive")
        need(self.softcap is None or 0.0 < self.softcap < math.inf, "softcap", "positive, or None for none")
        need(self.valid_vocab is None or self.valid_vocab > 0, "valid_vocab", "positive, or None for all columns")
        need(0.0 < self.grad_scale < math.inf, "grad_scale", "positive")


class LossOutput(NamedTuple):
    loss: Tensor  # scalar fp32, differentiable: the sum of `losses`
    losses: Tensor  # [N] fp32, weighted; this and the rest carry no gradient
    logprobs: Tensor  # [N] fp32, zero on ignored rows, like the rest
    entropies: Tensor  # [N] fp32
    kl: Tensor  # [N] fp32, k3 (clamped) on policy rows where ref_logprobs was given, unweighted
    flags: Tensor  # [N] uint8: CLIPPED | SATURATED (p >= tau on a world-model row) | DUAL_CLIPPED


def paw_loss(logits: Tensor, rows: LossRows, settings: LossSettings) -> LossOutput:
    """Losses of all rows in one pass; **overwrites `logits` with d(loss)/d(logits)**.

    logits  [N, V] fp32, bf16 or fp16; rows contiguous, any row stride (elements between rows are not touched).

    On return every one of the N * V elements holds the gradient of `loss` (times `grad_scale`): exact zeros on ignored
    rows, clipped rows without KL or entropy terms, saturated CMAE rows and padding columns. `loss.backward()` hands
    that very buffer to the logits' producer, multiplied in place first when the upstream gradient is not 1, and can
    therefore run once. Without grad mode, or for logits that require none, only the buffer is written.

    The caller must own the logits: the output of a matrix product that nothing else reads afterwards. A leaf that
    requires grad, and a view of a tensor that requires grad, are refused with ValueError; where another operation has
    saved the logits for its backward, autograd raises there. Shapes, dtypes, devices and a missing `ref_logprobs` raise
    ValueError, a target outside the vocabulary IndexError (on CUDA: NaN in that row).

    >>> rows = LossRows(torch.tensor([0]), torch.tensor([WORLD_MODEL], dtype=torch.uint8), torch.ones(1),
    ...                 old_logprobs=torch.zeros(1), advantages=torch.zeros(1))
    >>> paw_loss(torch.zeros(1, 10), rows, LossSettings(tau=0.2)).loss
    tensor(0.9000)
    """
    if settings.kl_coef != 0.0 and rows.ref_logprobs is None:
        raise ValueError(f"paw_loss: kl_coef is {settings.kl_coef} but ref_logprobs is None")
    return LossOutput(*torch.ops.paw_fast.paw_loss_(logits, *op_arguments(logits, rows, settings)))


def op_arguments(logits: Tensor, rows: LossRows, settings: LossSettings) -> tuple[Any, ...]:
    s = settings
    return (
        rows.targets, rows.kinds, rows.weights, rows.old_logprobs, rows.ref_logprobs, rows.advantages, rows.importance,
        s.temperature, s.softcap or 0.0, logits.shape[-1] if s.valid_vocab is None else s.valid_vocab,
        s.wm_temperature, s.clip_low, s.clip_high, s.dual_clip or 0.0, s.kl_coef, s.kl_clamp or 0.0, s.entropy_coef,
        s.tau, s.grad_scale, WM_LOSSES.index(s.wm_loss),
    )  # fmt: skip


_OP = native.register("paw_loss", "paw_loss", "scale_inplace")
native.LIBRARY.define(
    "paw_loss_(Tensor(a!) logits, Tensor targets, Tensor kinds, Tensor weights, Tensor old_logprobs, "
    "Tensor? ref_logprobs, Tensor advantages, Tensor? importance, float temperature, float softcap, int valid_vocab, "
    "float wm_temperature, float clip_low, float clip_high, float dual_clip, float kl_coef, float kl_clamp, "
    "float entropy_coef, float tau, float grad_scale, int wm_loss) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
native.LIBRARY.define("scale_(Tensor(a!) matrix, Tensor factor) -> ()")
# The schema's last arguments, under their names in csrc/paw_loss.h.
_SETTINGS = (
    "clip_low", "clip_high", "dual_clip", "kl_coef", "kl_clamp", "entropy_coef", "tau", "grad_scale", "wm_loss",
)  # fmt: skip


def _run(
    logits: Tensor, targets: Tensor, kinds: Tensor, weights: Tensor, old_logprobs: Tensor,
    ref_logprobs: Tensor | None, advantages: Tensor, importance: Tensor | None,
    temperature: float, softcap: float, valid_vocab: int, wm_temperature: float, *settings: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    native.check_map(_OP, temperature, softcap or None)
    native.check_map(_OP, wm_temperature, None)
    native.check_logits(_OP, logits, valid_vocab)
    vectors = {
        name: native.check_vector(_OP, name, vector, logits, dtype)
        for name, vector, dtype in (
            ("targets", targets, torch.int64),
            ("kinds", kinds, torch.uint8),
            ("weights", weights, torch.float32),
            ("old_logprobs", old_logprobs, torch.float32),
            ("ref_logprobs", ref_logprobs, torch.float32),
            ("advantages", advantages, torch.float32),
            ("importance", importance, torch.float32),
        )
    }
    if not logits.is_cuda and len(kinds):
        if int(kinds.max()) > WORLD_MODEL:
            raise ValueError(f"{_OP}: kinds must be 0, 1 or 2, got {int(kinds.max())}")
        native.check_targets(_OP, targets[kinds != IGNORED], valid_vocab)
    rows = logits.shape[0]
    losses, logprobs, entropies, kl = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(4))
    flags = torch.empty(rows, dtype=torch.uint8, device=logits.device)
    native.call(
        _OP, "paw_loss", logits.device,
        {
            **native.matrix_fields(logits), **native.map_fields(temperature, softcap, valid_vocab), **vectors,
            **dict(zip(_SETTINGS, settings, strict=True)), "wm_inv_temperature": 1.0 / wm_temperature,
            "losses": losses, "logprobs": logprobs, "entropies": entropies, "kl": kl, "flags": flags,
        },
    )  # fmt: skip
    native.bump_version(logits)
    loss = losses.sum(dtype=torch.float64).float()
    return loss, losses, logprobs, entropies, kl, flags


def _fake(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    def row(dtype: torch.dtype = torch.float32) -> Tensor:
        return logits.new_empty(logits.shape[0], dtype=dtype)

    return logits.new_empty((), dtype=torch.float32), row(), row(), row(), row(), row(torch.uint8)


def _scale(matrix: Tensor, factor: Tensor) -> None:
    factor = factor.to(torch.float32)
    native.call(
        _OP, "scale_inplace", matrix.device,
        {
            "matrix": matrix, "dtype": native.DTYPES[matrix.dtype], "rows": matrix.shape[0],
            "columns": matrix.shape[1], "stride": matrix.stride(0), "factor": factor,
        },
    )  # fmt: skip
    native.bump_version(matrix)


class _PawLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = torch.ops.paw_fast.paw_loss_(logits, *args)
        ctx.mark_non_differentiable(*outputs[1:])
        # Saved for its version check: whoever writes to the gradient between here and the backward is caught.
        ctx.save_for_backward(logits)
        ctx.num_args = len(args)
        ctx.spent = False
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if ctx.spent:
            raise RuntimeError("paw_loss: the gradient has been handed over already: call paw_loss again")
        ctx.spent = True
        gradient = ctx.saved_tensors[0].detach()
        torch.ops.paw_fast.scale_(gradient, grads[0])
        return (gradient, *([None] * ctx.num_args))


def _autograd(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    if not torch.compiler.is_compiling():
        check_owned(_OP, logits)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _PawLoss.apply(logits, *args)  # type: ignore[return-value]
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.paw_fast.paw_loss_(logits, *args)


def check_owned(op: str, logits: Tensor) -> None:
    """Raises ValueError if `logits` is a leaf or a view, whose owner would lose its values."""
    if logits.requires_grad and logits.is_leaf:
        raise ValueError(f"{op}: would overwrite a leaf that requires grad: pass a copy, or the output of the LM head")
    base = logits._base
    if base is not None and (base.requires_grad or logits.requires_grad):
        raise ValueError(
            f"{op}: would overwrite a view of a {tuple(base.shape)} tensor that requires grad: "
            "select and flatten the hidden states before the LM head, not the logits after it"
        )


for _key in ("CPU", "CUDA"):
    native.LIBRARY.impl("paw_loss_", _run, _key)
    native.LIBRARY.impl("scale_", _scale, _key)
native.LIBRARY.impl("paw_loss_", _autograd, "Autograd")
torch.library.register_fake("paw_fast::paw_loss_", _fake, lib=native.LIBRARY)


@torch.library.register_fake("paw_fast::scale_", lib=native.LIBRARY)
def _scale_fake(matrix: Tensor, factor: Tensor) -> None:
    return None
