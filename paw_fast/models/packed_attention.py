"""Attention for packed sequences and for the rollout cache, hooked into Hugging Face models by name.

Every linear layer of the model runs on one row of packed tokens [1, T], so nothing is padded; only attention
needs to know where sequences begin and end, and that is what the two plans here hold. A plan travels to the
attention layers as a keyword argument of the model (`paw_plan=...`).

Sliding windows, score caps (Gemma-2) and attention sinks (gpt-oss) are computed; anything else that a model asks of
its attention is refused by name with a `UserError`.

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
QUERIES_AT_ONCE = 512
"""Queries whose scores exist at the same time, where scores have to be written out (a score cap)."""


@dataclass(frozen=True)
class Scoring:
    """How a layer turns queries and keys into attention weights.

    scale: factor on the dot products. window: a query sees itself and the `window - 1` tokens before it (None: all).
    softcap: scores become `softcap * tanh(scores / softcap)`. sinks [Hq]: a further score of every query, whose
    weight goes to nothing.

    >>> Scoring(0.125, window=512).is_plain(512), Scoring(0.125, window=512).is_plain(513)
    (True, False)
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def is_plain(self, length: int) -> bool:
        """Whether this is ordinary causal attention for sequences of up to `length` tokens."""
        return self.softcap is None and self.sinks is None and not self.bites(length)

    def bites(self, length: int) -> bool:
        return self.window is not None and self.window < length


@dataclass(frozen=True)
class PackedPlan:
    """Causal attention inside each of several packed sequences; used for scoring and for the update.

    lengths [B]: tokens of each sequence, summing to T.
    """

    lengths: tuple[int, ...]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """q [1, Hq, T, D], k [1, Hk, T, D], v [1, Hk, T, Dv] -> [1, Hq, T, Dv]."""
        if q.is_cuda and scoring.is_plain(max(self.lengths)):
            return _varlen_cuda(q, k, v, self.lengths, scoring.scale)
        k, v = _repeat(k, v, q.shape[1] // k.shape[1])
        parts = zip(*(x.split(self.lengths, dim=2) for x in (q, k, v)), strict=True)
        out = [_attend_one(a, b, c, 0, scoring) for a, b, c in parts]
        return torch.cat(out, dim=2) if len(out) > 1 else out[0]


def _repeat(k: Tensor, v: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Every query head's own copy of its keys and values."""
    return (k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)) if groups > 1 else (k, v)


def _visible(n: int, start: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """[n, start + n - first] True where the query at position start + i may see the key at position first + j."""
    mask = torch.ones(n, start + n - first, dtype=torch.bool, device=device).tril_(start - first)
    return mask if window is None else mask.triu_(start - first - window + 1)


def _attend_one(q: Tensor, k: Tensor, v: Tensor, start: int, scoring: Scoring) -> Tensor:
    """One sequence's attention: n queries at positions start, start + 1, ... over all keys up to their own.

    q [1, Hq, n, D], k [1, Hq, start + n, D], v [1, Hq, start + n, Dv] -> [1, Hq, n, Dv].
    """
    n, total = q.shape[2], k.shape[2]
    if scoring.softcap is not None:
        return _attend_in_blocks(q, k, v, start, scoring)
    if start == 0 and scoring.is_plain(total):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scoring.scale)
    first = 0
    if scoring.window is not None and scoring.bites(total):
        first = max(0, start - scoring.window + 1)
    mask = _visible(n, start, first, scoring.window if scoring.bites(total) else None, q.device)
    k, v = k[:, :, first:], v[:, :, first:]
    if scoring.sinks is not None:
        q, k, v, mask = _with_sink(q, k, v, mask, scoring)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scoring.scale)


def _with_sink(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sinks as one more key, which all queries see and whose value is zero: its score comes from a further number
    of each head, which is 1 in the queries and 0 in the other keys. So no scores need to be written out."""
    assert scoring.sinks is not None
    pad = 8  # kernels want head sizes that are multiples of 8
    one = q.new_zeros(pad)
    one[0] = 1.0
    q = torch.cat([q, one.expand(*q.shape[:-1], pad)], -1)
    key = k.new_zeros(1, k.shape[1], 1, k.shape[-1] + pad)
    key[0, :, 0, -pad] = (scoring.sinks / scoring.scale).to(k.dtype)
    k = torch.cat([key, F.pad(k, (0, pad))], 2)
    v = F.pad(v, (0, 0, 1, 0))
    return q, k, v, F.pad(mask, (1, 0), value=True)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, start: int, scoring: Scoring) -> Tensor:
    """Attention with its scores written out, some queries at a time; the backward pass computes the scores again."""
    out = []
    for at in range(0, q.shape[2], QUERIES_AT_ONCE):
        part = q[:, :, at : at + QUERIES_AT_ONCE]
        begin, n = start + at, part.shape[2]
        first = 0 if scoring.window is None else max(0, begin - scoring.window + 1)
        mask = _visible(n, begin, first, scoring.window, q.device)
        run = partial(_written_out, scale=scoring.scale, softcap=scoring.softcap)
        sinks = None if scoring.sinks is None else scoring.sinks.view(1, -1, 1, 1)
        inputs = (part, k[:, :, first : begin + n], v[:, :, first : begin + n], mask, sinks)
        if torch.is_grad_enabled():
            out.append(checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            out.append(run(*inputs))
    return torch.cat(out, 2) if len(out) > 1 else out[0]


def _written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """softmax of the capped scores and the sinks, by the book. `mask` and `sinks` broadcast against the scores."""
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
    """q [1, Hq, T, D], k [1, Hk, T, D], v [1, Hk, T, Dv] -> [1, Hq, T, Dv], through PyTorch's nested tensors (flash
    kernels, which want values of the keys' size: zeros fill the shorter)."""
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
    """Keys and values of the episodes in flight: one slot an episode, kept across its turns.

    A layer's buffers are made when it is first run, of the shape, dtype and device of what it gives: [S, Hk, L, D] and
    [S, Hk, L, Dv]. `max_length` is the most tokens that a slot can hold.
    """

    def __init__(self, slots: int, max_length: int):
        self.slots, self.max_length = slots, max_length
        self._capacity = min(256, max_length)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, length: int) -> None:
        """Grows the buffers so that a slot can hold `length` tokens."""
        if length <= self._capacity:
            return
        if length > self.max_length:
            raise ValueError(f"a slot holds at most {self.max_length} tokens, asked for {length}")
        grown = min(self.max_length, max(length, self._capacity * 2))
        pad = (0, 0, 0, grown - self._capacity)
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = F.pad(keys, pad), F.pad(values, pad)
        self._capacity = grown

    def write(self, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Puts new keys [1, Hk, T, D] and values [1, Hk, T, Dv] in their places; gives the layer's buffers."""
        if layer not in self._layers:
            make = lambda x: x.new_zeros(self.slots, x.shape[1], self._capacity, x.shape[3])  # noqa: E731
            self._layers[layer] = make(k), make(v)
        keys, values = self._layers[layer]
        keys[slots, :, positions] = k[0].transpose(0, 1)
        values[slots, :, positions] = v[0].transpose(0, 1)
        return keys, values


@dataclass(frozen=True)
class SlotPlan:
    """Attention of new tokens over their episode's cached tokens and, causally, over each other.

    slots, starts, lengths [B]: sequence i adds `lengths[i]` tokens at position `starts[i]` of slot `slots[i]`;
    the packed tokens come in this order. Single-token sequences must come first (they share one batched call).
    """

    cache: SlotCache
    slots: Sequence[int]
    starts: Sequence[int]
    lengths: Sequence[int]
    singles: int
    token_slots: Tensor  # [T]
    token_positions: Tensor  # [T]
    ends: Tensor  # [rows] position of the single query of each slot, 0 where there is none
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    @classmethod
    def make(cls, cache: SlotCache, slots: Sequence[int], starts: Sequence[int], lengths: Sequence[int], device):
        singles = sum(1 for n in lengths if n == 1)
        assert all(n == 1 for n in lengths[:singles]), "single-token sequences come first"
        cache.reserve(max(a + n for a, n in zip(starts, lengths, strict=True)))
        token_slots = torch.repeat_interleave(torch.tensor(slots), torch.tensor(lengths))
        positions = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])
        ends = torch.zeros(max(slots[:singles], default=-1) + 1, dtype=torch.long)
        if singles:
            ends[torch.tensor(slots[:singles])] = torch.tensor(starts[:singles])
        return cls(
            cache, slots, starts, lengths, singles, token_slots.to(device), positions.to(device), ends.to(device)
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """As `PackedPlan.attend`; the new keys and values are put into the cache."""
        keys, values = self.cache.write(layer, self.token_slots, self.token_positions, k, v)
        out = q.new_empty(*q.shape[:3], v.shape[3])
        if self.singles:
            out[0, :, : self.singles] = self._attend_singles(q[0, :, : self.singles], keys, values, scoring)
        at = self.singles
        rest = slice(self.singles, None)
        for slot, start, n in zip(self.slots[rest], self.starts[rest], self.lengths[rest], strict=True):
            kk, vv = keys[slot, None, :, : start + n], values[slot, None, :, : start + n]
            kk, vv = _repeat(kk, vv, q.shape[1] // k.shape[1])
            out[:, :, at : at + n] = _attend_one(q[:, :, at : at + n], kk, vv, start, scoring)
            at += n
        return out

    def _attend_singles(self, q: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """One query of each of the first sequences [Hq, singles, D] over its slot -> [Hq, singles, Dv]."""
        width = max(self.starts[: self.singles]) + 1
        mask = self._decode_mask(width, scoring.window if scoring.bites(width) else None)
        rows, heads, kv_heads = len(mask), q.shape[0], keys.shape[1]
        picked = self.token_slots[: self.singles]
        queries = q.new_zeros(rows, heads, q.shape[2])
        queries[picked] = q.transpose(0, 1)
        folded = queries.view(rows, kv_heads, heads // kv_heads, -1)  # a group's heads share keys: [rows, Hk, g, D]
        keys, values = keys[:rows, :, :width], values[:rows, :, :width]
        if scoring.softcap is None and scoring.sinks is None:
            got = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scoring.scale)
        else:
            sinks = None if scoring.sinks is None else scoring.sinks.view(1, kv_heads, -1, 1)
            got = _written_out(folded, keys, values, mask, sinks, scale=scoring.scale, softcap=scoring.softcap)
        return got.reshape(rows, heads, -1)[picked].transpose(0, 1)

    def _decode_mask(self, width: int, window: int | None) -> Tensor:
        """[rows, 1, 1, width] True where a slot's single query may look; made once for each window of the model."""
        if window not in self._masks:
            positions, ends = torch.arange(width, device=self.ends.device), self.ends[:, None]
            mask = positions <= ends
            if window is not None:
                mask &= positions > ends - window
            self._masks[window] = mask[:, None, None, :]
        return self._masks[window]


# -------------------------------------------------------------------------------------- what Hugging Face calls

_HARMLESS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "cache_position"}
"""Keyword arguments that reach the attention function and change nothing in it."""
_OTHER_MASKS = ("chunked", "blockwise", "bidirectional")


def _packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, paw_plan: Any = None, sliding_window: int | None = None, softcap: float | None = None,
    s_aux: Tensor | None = None, is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The function Hugging Face calls in every layer: q, k, v [1, H, T, D] -> ([1, T, Hq, D], None)."""
    if paw_plan is None:
        raise _refused(module, "`paw_plan`, which their layers do not pass on to it")
    for name in sorted(set(kwargs) - _HARMLESS):
        if kwargs[name] is not None:
            raise _refused(module, f"`{name}`")
    if dropout:
        raise _refused(module, f"dropout {dropout} at work: `policy.without_dropout(model)` switches it off")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise _refused(module, "attention that is not causal")
    if key.shape[2] != query.shape[2] or len(query) != 1:
        raise _refused(module, "keys of other tokens than the queries'")
    if scaling is not None and not isinstance(scaling, int | float):
        raise _refused(module, "a `scaling` that is no number")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise _refused(module, "layers without a number (`layer_idx`)")
    window = _window_of(module, attention_mask)
    if window is not None and sliding_window is not None and window != sliding_window:
        raise _refused(module, f"two windows in one layer ({sliding_window} and {window})")
    window = sliding_window if window is None else window
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = paw_plan.attend(layer, query, key, value, Scoring(scale, window, softcap, s_aux))
    return out.transpose(1, 2), None


def _refused(module: Any, what: str) -> UserError:
    kind = getattr(getattr(module, "config", None), "model_type", None) or type(module).__name__
    return UserError(f"models of type {kind} are not supported: their attention wants {what}")


def _mask(*args: Any, mask_function: Callable | None = None, **kwargs: Any) -> Tensor | None:
    """What stands for a model's mask: None for plain causal attention, [window, 1, 0, 0] for a sliding window.

    Some models (Qwen2-MoE) tell their window to nobody but the mask. An empty tensor is carried through layers and
    checkpointing like any mask, and its shape is read without waiting for the device.
    """
    config, window = kwargs.get("config"), kwargs.get("local_size")
    names = " ".join(_names(mask_function))
    other = next((kind for kind in _OTHER_MASKS if kind in names), "one of their own" if kwargs.get("use_vmap") else "")
    if other:
        kind = getattr(config, "model_type", "this model's")
        raise UserError(f"models of type {kind} are not supported: their attention mask is {other}, not causal")
    return None if window is None else torch.empty(window, 1, 0, 0, device=kwargs.get("device", "cpu"))


def _names(function: Any) -> Iterator[str]:
    """Names of a mask function and of those it is made of."""
    if callable(function):
        yield getattr(function, "__qualname__", type(function).__name__)
        for cell in getattr(function, "__closure__", None) or ():
            for inner in cell.cell_contents if isinstance(cell.cell_contents, tuple) else (cell.cell_contents,):
                yield from _names(inner)


def _window_of(module: Any, mask: Tensor | None) -> int | None:
    """Reads what `_mask` made. Raises `UserError` for any other mask."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.numel():
        raise _refused(module, "an attention mask of its own")
    return mask.shape[0]


AttentionInterface.register(ATTENTION_NAME, _packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)
