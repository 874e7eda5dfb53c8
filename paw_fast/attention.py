"""Attention for packed sequences and for the rollout cache, hooked into Hugging Face models by name.

Every linear layer of the model runs on one row of packed tokens [1, T], so nothing is padded; only attention
needs to know where sequences begin and end, and that is what the two plans here hold. A plan travels to the
attention layers as a keyword argument of the model (`paw_plan=...`).

Shapes: T packed tokens, Hq query heads, Hk key/value heads, D head dimension, S cache slots, L cache length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION_NAME = "paw_packed"


@dataclass(frozen=True)
class PackedPlan:
    """Causal attention inside each of several packed sequences; used for scoring and for the update.

    lengths [B]: tokens of each sequence, summing to T.
    """

    lengths: tuple[int, ...]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        if q.is_cuda:
            return _varlen_cuda(q, k, v, self.lengths, scale)
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        parts = zip(*(x.split(self.lengths, dim=2) for x in (q, k, v)), strict=True)
        out = [F.scaled_dot_product_attention(a, b, c, is_causal=True, scale=scale) for a, b, c in parts]
        return torch.cat(out, dim=2) if len(out) > 1 else out[0]


def _varlen_cuda(q, k, v, lengths: tuple[int, ...], scale: float) -> torch.Tensor:
    """q [1, Hq, T, D], k and v [1, Hk, T, D] -> [1, Hq, T, D], through PyTorch's nested tensors (flash kernels)."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
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
    return out.transpose(1, 2).values().transpose(0, 1)[None]


class SlotCache:
    """Keys and values of the episodes in flight: one slot an episode, kept across its turns.

    Memory: 2 * layers * S * Hk * L * D elements. `lengths[s]` tokens of slot `s` are valid.
    """

    def __init__(self, layers: int, slots: int, kv_heads: int, head_dim: int, max_length: int, *, dtype, device):
        self.shape = (layers, slots, kv_heads, head_dim)
        self.max_length = max_length
        self.lengths = [0] * slots
        self._capacity = min(256, max_length)
        make = lambda: torch.zeros(layers, slots, kv_heads, self._capacity, head_dim, dtype=dtype, device=device)  # noqa: E731
        self.keys, self.values = make(), make()

    def reserve(self, length: int) -> None:
        """Grows the buffers so that a slot can hold `length` tokens."""
        if length <= self._capacity:
            return
        if length > self.max_length:
            raise ValueError(f"a slot holds at most {self.max_length} tokens, asked for {length}")
        grown = min(self.max_length, max(length, self._capacity * 2))
        pad = (0, 0, 0, grown - self._capacity)
        self.keys, self.values = F.pad(self.keys, pad), F.pad(self.values, pad)
        self._capacity = grown


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
    token_slots: torch.Tensor  # [T]
    token_positions: torch.Tensor  # [T]
    decode_mask: torch.Tensor | None  # [rows, 1, 1, width] True where the single query may look

    @classmethod
    def make(cls, cache: SlotCache, slots: Sequence[int], starts: Sequence[int], lengths: Sequence[int], device):
        singles = sum(1 for n in lengths if n == 1)
        assert all(n == 1 for n in lengths[:singles]), "single-token sequences come first"
        cache.reserve(max(a + n for a, n in zip(starts, lengths, strict=True)))
        token_slots = torch.repeat_interleave(torch.tensor(slots), torch.tensor(lengths))
        positions = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])
        mask = None
        if singles:
            rows, width = max(slots[:singles]) + 1, max(starts[:singles]) + 1
            ends = torch.zeros(rows, dtype=torch.long)
            ends[torch.tensor(slots[:singles])] = torch.tensor(starts[:singles])
            mask = (torch.arange(width) <= ends[:, None])[:, None, None, :].to(device)
        return cls(cache, slots, starts, lengths, singles, token_slots.to(device), positions.to(device), mask)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # [S, Hk, L, D]
        keys[self.token_slots, :, self.token_positions] = k[0].transpose(0, 1)
        values[self.token_slots, :, self.token_positions] = v[0].transpose(0, 1)
        out = torch.empty_like(q)
        groups = q.shape[1] // k.shape[1]
        if self.singles:
            assert self.decode_mask is not None
            rows, width = self.decode_mask.shape[0], self.decode_mask.shape[-1]
            queries = q.new_zeros(rows, q.shape[1], q.shape[3])
            picked = self.token_slots[: self.singles]
            queries[picked] = q[0, :, : self.singles].transpose(0, 1)
            folded = queries.view(rows, k.shape[1], groups, q.shape[3])  # a group's heads share keys: [rows, Hk, g, D]
            got = F.scaled_dot_product_attention(
                folded, keys[:rows, :, :width], values[:rows, :, :width], attn_mask=self.decode_mask, scale=scale
            )
            out[0, :, : self.singles] = got.reshape(rows, q.shape[1], q.shape[3])[picked].transpose(0, 1)
        at = self.singles
        rest = slice(self.singles, None)
        for slot, start, n in zip(self.slots[rest], self.starts[rest], self.lengths[rest], strict=True):
            kk, vv = keys[slot, None, :, : start + n], values[slot, None, :, : start + n]
            if groups > 1:
                kk, vv = kk.repeat_interleave(groups, 1), vv.repeat_interleave(groups, 1)
            if start == 0:
                got = F.scaled_dot_product_attention(q[:, :, at : at + n], kk, vv, is_causal=True, scale=scale)
            else:
                mask = torch.ones(n, start + n, dtype=torch.bool, device=q.device).tril_(start)
                got = F.scaled_dot_product_attention(q[:, :, at : at + n], kk, vv, attn_mask=mask, scale=scale)
            out[:, :, at : at + n] = got
            at += n
        return out


def _packed_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, paw_plan=None, **kwargs):
    """The function Hugging Face calls in every layer: q, k, v [1, H, T, D] -> ([1, T, Hq, D], None)."""
    if paw_plan is None:
        raise ValueError(f"attention {ATTENTION_NAME!r} needs paw_plan=PackedPlan(...) or SlotPlan(...)")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = paw_plan.attend(module.layer_idx, query, key, value, scale)
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, _packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, lambda *args, **kwargs: None)
