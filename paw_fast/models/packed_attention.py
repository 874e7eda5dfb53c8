"""Implements attention for packed sequences and for the rollout cache, registered with Hugging Face by name.

The model runs on one row of packed tokens [1, T], so there is no padding. Only attention needs to know where sequences
start and end; the two plans in this module describe that. A plan is passed to the attention layers as a keyword
argument of the model (`paw_plan=...`).

Sliding windows, score caps (Gemma-2) and attention sinks (gpt-oss) are supported. If a model requires any other feature
of its attention, a `UserError` names it.

Shapes: T packed tokens, Hq query heads, Hk key/value heads, D head size of queries and keys, Dv of values, S cache
slots, L cache length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface

from paw_fast.errors import UserError

ATTENTION_NAME = "paw_packed"
QUERY_BLOCK = 512
"""Number of queries per block where the attention scores are materialized (models with a score cap)."""


@dataclass(frozen=True)
class AttentionParams:
    """How a layer computes attention weights from queries and keys.

    scale: factor on the dot products.
    window: each query attends to itself and the `window - 1` tokens before it (None: all tokens before it).
    softcap: scores are capped as `softcap * tanh(scores / softcap)` (None: no cap).
    sinks: [Hq] an additional score for every query of a head, whose weight is dropped after the softmax.

    >>> AttentionParams(0.125, window=512).is_plain(512), AttentionParams(0.125, window=512).is_plain(513)
    (True, False)
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def is_plain(self, length: int) -> bool:
        """Returns True if this is plain causal attention for sequences of up to `length` tokens."""
        return self.softcap is None and self.sinks is None and not self.is_windowed(length)

    def is_windowed(self, length: int) -> bool:
        """Returns True if the window is shorter than `length` tokens."""
        return self.window is not None and self.window < length


@dataclass(frozen=True)
class PackedPlan:
    """Causal attention within each of B packed sequences; used for token statistics and for the update.

    lengths: [B] number of tokens of each sequence, summing to T.
    """

    lengths: tuple[int, ...]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        """Computes attention: q [1, Hq, T, D], k [1, Hk, T, D], v [1, Hk, T, Dv] -> [1, Hq, T, Dv]."""
        if q.is_cuda and params.is_plain(max(self.lengths)):
            return _varlen_cuda(q, k, v, self.lengths, params.scale)
        k, v = _repeat(k, v, q.shape[1] // k.shape[1])
        parts = zip(*(x.split(self.lengths, dim=2) for x in (q, k, v)), strict=True)
        out = [_attend_one(a, b, c, 0, params) for a, b, c in parts]
        return torch.cat(out, dim=2) if len(out) > 1 else out[0]


def _repeat(k: Tensor, v: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Repeats keys and values for the query heads that share them (grouped-query attention)."""
    return (k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)) if groups > 1 else (k, v)


def _visible(n: int, start: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """Returns a mask [n, start + n - first], True if query i (at start + i) may attend to key j (at first + j)."""
    mask = torch.ones(n, start + n - first, dtype=torch.bool, device=device).tril_(start - first)
    return mask if window is None else mask.triu_(start - first - window + 1)


def _attend_one(q: Tensor, k: Tensor, v: Tensor, start: int, params: AttentionParams) -> Tensor:
    """Computes the attention of one sequence: n queries at positions start, start + 1, ... over all previous keys.

    q [1, Hq, n, D], k [1, Hq, start + n, D], v [1, Hq, start + n, Dv] -> [1, Hq, n, Dv].
    """
    n, total = q.shape[2], k.shape[2]
    if params.softcap is not None:
        return _attend_in_blocks(q, k, v, start, params)
    if start == 0 and params.is_plain(total):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=params.scale)
    first = 0
    if params.window is not None and params.is_windowed(total):
        first = max(0, start - params.window + 1)
    mask = _visible(n, start, first, params.window if params.is_windowed(total) else None, q.device)
    k, v = k[:, :, first:], v[:, :, first:]
    if params.sinks is not None:
        q, k, v, mask = _with_sink(q, k, v, mask, params)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=params.scale)


def _with_sink(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, params: AttentionParams
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adds the sinks as one more key with value zero, so that the fused attention kernels can be used.

    Queries and keys get additional dimensions, of which the first is 1 in all queries, sink / scale in the new key and
    0 in all other keys. All queries may attend to the new key.
    """
    assert params.sinks is not None
    pad = 8  # the kernels require head sizes that are multiples of 8
    one = q.new_zeros(pad)
    one[0] = 1.0
    q = torch.cat([q, one.expand(*q.shape[:-1], pad)], -1)
    key = k.new_zeros(1, k.shape[1], 1, k.shape[-1] + pad)
    key[0, :, 0, -pad] = (params.sinks / params.scale).to(k.dtype)
    k = torch.cat([key, F.pad(k, (0, pad))], 2)
    v = F.pad(v, (0, 0, 1, 0))
    return q, k, v, F.pad(mask, (1, 0), value=True)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, start: int, params: AttentionParams) -> Tensor:
    """Computes attention in blocks of queries with materialized scores, which the backward pass recomputes."""
    out = []
    for at in range(0, q.shape[2], QUERY_BLOCK):
        part = q[:, :, at : at + QUERY_BLOCK]
        begin, n = start + at, part.shape[2]
        first = 0 if params.window is None else max(0, begin - params.window + 1)
        mask = _visible(n, begin, first, params.window, q.device)
        run = partial(_explicit_attention, scale=params.scale, softcap=params.softcap)
        sinks = None if params.sinks is None else params.sinks.view(1, -1, 1, 1)
        inputs = (part, k[:, :, first : begin + n], v[:, :, first : begin + n], mask, sinks)
        if torch.is_grad_enabled():
            out.append(checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            out.append(run(*inputs))
    return torch.cat(out, 2) if len(out) > 1 else out[0]


def _explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """Computes attention without fused kernels. `mask` and `sinks` must broadcast against the scores."""
    scores = (q @ k.transpose(-1, -2)) * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], -1)
    weights = torch.softmax(scores, -1).to(v.dtype)
    return (weights[..., :-1] if sinks is not None else weights) @ v


def _varlen_cuda(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """Computes packed attention on CUDA: q [1, Hq, T, D], k [1, Hk, T, D], v [1, Hk, T, Dv] -> [1, Hq, T, Dv].

    Uses the flash kernels through PyTorch's nested tensors. They require D = Dv, so the smaller is padded with zeros.
    """
    k, v = _repeat(k, v, q.shape[1] // k.shape[1])
    size, value_size = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    q, k, v = (x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1])) for x in (q, k, v))
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    offsets[1:] = torch.tensor(lengths).cumsum(0)
    offsets = offsets.to(q.device, non_blocking=True)
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(
            x[0].transpose(0, 1).contiguous(), offsets, min_seqlen=min(lengths), max_seqlen=max(lengths)
        ).transpose(1, 2)
        for x in (q, k, v)
    )
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return out.transpose(1, 2).values().transpose(0, 1)[None, ..., :value_size]


class SlotCache:
    """Caches keys and values of the running episodes: one slot per episode, kept between its turns.

    The buffers of a layer, [S, Hk, L, D] and [S, Hk, L, Dv], are allocated when the layer first runs, with its dtype
    and device. `max_length` is the maximum number of tokens per slot.
    """

    def __init__(self, slots: int, max_length: int):
        self.slots, self.max_length = slots, max_length
        self._capacity = min(256, max_length)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, length: int) -> None:
        """Grows the buffers so that a slot can hold `length` tokens. Raises `ValueError` above `max_length`."""
        if length <= self._capacity:
            return
        if length > self.max_length:
            raise ValueError(f"got {length} tokens, expected at most {self.max_length} per slot")
        grown = min(self.max_length, max(length, self._capacity * 2))
        pad = (0, 0, 0, grown - self._capacity)
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = F.pad(keys, pad), F.pad(values, pad)
        self._capacity = grown

    def write(self, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys [1, Hk, T, D] and values [1, Hk, T, Dv] and returns the buffers of the layer.

        slots, positions: [T] where each token is stored.
        """
        if layer not in self._layers:
            make = lambda x: x.new_zeros(self.slots, x.shape[1], self._capacity, x.shape[3])  # noqa: E731
            self._layers[layer] = make(k), make(v)
        keys, values = self._layers[layer]
        keys[slots, :, positions] = k[0].transpose(0, 1)
        values[slots, :, positions] = v[0].transpose(0, 1)
        return keys, values


@dataclass(frozen=True)
class SlotPlan:
    """Causal attention of new tokens over the cached tokens of their episode and over each other.

    slots, starts, lengths: [B] sequence i adds `lengths[i]` tokens at position `starts[i]` of slot `slots[i]`. The
    tokens are packed in this order. Sequences of a single token must come first; they share one batched call.
    num_singles: number of sequences with a single token.
    """

    cache: SlotCache
    slots: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]
    num_singles: int
    token_slots: Tensor  # [T]
    token_positions: Tensor  # [T]
    ends: Tensor  # [rows] position of the single query of each slot, 0 if there is none
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    @classmethod
    def make(cls, cache: SlotCache, slots: Sequence[int], starts: Sequence[int], lengths: Sequence[int], device):
        num_singles = sum(1 for n in lengths if n == 1)
        assert all(n == 1 for n in lengths[:num_singles]), "single-token sequences come first"
        cache.reserve(max(a + n for a, n in zip(starts, lengths, strict=True)))
        token_slots = torch.repeat_interleave(torch.tensor(slots), torch.tensor(lengths))
        positions = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])
        ends = torch.zeros(max(slots[:num_singles], default=-1) + 1, dtype=torch.long)
        if num_singles:
            ends[torch.tensor(slots[:num_singles])] = torch.tensor(starts[:num_singles])
        return cls(
            cache, slots, starts, lengths, num_singles, token_slots.to(device), positions.to(device), ends.to(device)
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        """Like `PackedPlan.attend`, but also stores the new keys and values in the cache."""
        keys, values = self.cache.write(layer, self.token_slots, self.token_positions, k, v)
        out = q.new_empty(*q.shape[:3], v.shape[3])
        if self.num_singles:
            out[0, :, : self.num_singles] = self._attend_singles(q[0, :, : self.num_singles], keys, values, params)
        at = self.num_singles
        rest = slice(self.num_singles, None)
        for slot, start, n in zip(self.slots[rest], self.starts[rest], self.lengths[rest], strict=True):
            kk, vv = keys[slot, None, :, : start + n], values[slot, None, :, : start + n]
            kk, vv = _repeat(kk, vv, q.shape[1] // k.shape[1])
            out[:, :, at : at + n] = _attend_one(q[:, :, at : at + n], kk, vv, start, params)
            at += n
        return out

    def _attend_singles(self, q: Tensor, keys: Tensor, values: Tensor, params: AttentionParams) -> Tensor:
        """Computes the attention of single queries [Hq, num_singles, D] over their slots -> [Hq, num_singles, Dv]."""
        width = max(self.starts[: self.num_singles]) + 1
        mask = self._decode_mask(width, params.window if params.is_windowed(width) else None)
        rows, heads, kv_heads = len(mask), q.shape[0], keys.shape[1]
        picked = self.token_slots[: self.num_singles]
        queries = q.new_zeros(rows, heads, q.shape[2])
        queries[picked] = q.transpose(0, 1)
        folded = queries.view(rows, kv_heads, heads // kv_heads, -1)  # [rows, Hk, g, D]: g heads share their keys
        keys, values = keys[:rows, :, :width], values[:rows, :, :width]
        if params.softcap is None and params.sinks is None:
            got = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=params.scale)
        else:
            sinks = None if params.sinks is None else params.sinks.view(1, kv_heads, -1, 1)
            got = _explicit_attention(folded, keys, values, mask, sinks, scale=params.scale, softcap=params.softcap)
        return got.reshape(rows, heads, -1)[picked].transpose(0, 1)

    def _decode_mask(self, width: int, window: int | None) -> Tensor:
        """Returns a mask [rows, 1, 1, width], True if a slot's single query may attend there. Cached per window."""
        if window not in self._masks:
            positions, ends = torch.arange(width, device=self.ends.device), self.ends[:, None]
            mask = positions <= ends
            if window is not None:
                mask &= positions > ends - window
            self._masks[window] = mask[:, None, None, :]
        return self._masks[window]


# --------------------------------------------------------------------------------------- Hugging Face interface

_HARMLESS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "cache_position"}
"""Keyword arguments of the attention function that do not affect its result."""
_OTHER_MASKS = ("chunked", "blockwise", "bidirectional")


def _packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, paw_plan: Any = None, sliding_window: int | None = None, softcap: float | None = None,
    s_aux: Tensor | None = None, is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The attention function that Hugging Face calls in every layer: q, k, v [1, H, T, D] -> ([1, T, Hq, D], None)."""
    if paw_plan is None:
        raise _unsupported(module, "does not receive `paw_plan` from the layers")
    for name in sorted(set(kwargs) - _HARMLESS):
        if kwargs[name] is not None:
            raise _unsupported(module, f"uses `{name}`")
    if dropout:
        raise _unsupported(module, f"uses dropout {dropout}: disable it with `policy.disable_dropout(model)`")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise _unsupported(module, "is not causal")
    if key.shape[2] != query.shape[2] or len(query) != 1:
        raise _unsupported(module, "uses keys of other tokens than the queries")
    if scaling is not None and not isinstance(scaling, int | float):
        raise _unsupported(module, "uses a `scaling` that is not a number")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise _unsupported(module, "has no layer index (`layer_idx`)")
    window = _window_of(module, attention_mask)
    if window is not None and sliding_window is not None and window != sliding_window:
        raise _unsupported(module, f"uses two windows in one layer ({sliding_window} and {window})")
    window = sliding_window if window is None else window
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = paw_plan.attend(layer, query, key, value, AttentionParams(scale, window, softcap, s_aux))
    return out.transpose(1, 2), None


def _unsupported(module: Any, reason: str) -> UserError:
    kind = getattr(getattr(module, "config", None), "model_type", None) or type(module).__name__
    return UserError(f"models of type {kind} are not supported: their attention {reason}")


def _mask(*args: Any, mask_function: Callable | None = None, **kwargs: Any) -> Tensor | None:
    """The mask function that Hugging Face calls. Returns None for causal attention, or an empty tensor for a window.

    Some models (Qwen2-MoE) pass their sliding window only to the mask function. It is encoded as an empty tensor of
    shape [window, 1, 0, 0]: layers and gradient checkpointing treat it like any mask, and reading its shape does not
    synchronize the device.
    """
    config, window = kwargs.get("config"), kwargs.get("local_size")
    names = " ".join(_names(mask_function))
    other = next((kind for kind in _OTHER_MASKS if kind in names), "custom" if kwargs.get("use_vmap") else "")
    if other:
        kind = getattr(config, "model_type", "this model's")
        raise UserError(f"models of type {kind} are not supported: their attention mask is {other}, not causal")
    return None if window is None else torch.empty(window, 1, 0, 0, device=kwargs.get("device", "cpu"))


def _names(function: Any) -> Iterator[str]:
    """Yields the names of a mask function and of the functions that it is composed of."""
    if callable(function):
        yield getattr(function, "__qualname__", type(function).__name__)
        for cell in getattr(function, "__closure__", None) or ():
            for inner in cell.cell_contents if isinstance(cell.cell_contents, tuple) else (cell.cell_contents,):
                yield from _names(inner)


def _window_of(module: Any, mask: Tensor | None) -> int | None:
    """Returns the window encoded by `_mask`, or None. Raises `UserError` for any other mask."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.numel():
        raise _unsupported(module, "uses a custom attention mask")
    return mask.shape[0]


AttentionInterface.register(ATTENTION_NAME, _packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)
