"""Counts what autograd keeps of a forward pass over packed tokens, and what passes hold for a moment. In bytes a token.

The counts follow the layers of transformers (Llama, Mistral, Qwen2, Qwen3) and `models.packed_attention`, tensor by
tensor; tests compare them with what `torch.autograd.graph.saved_tensors_hooks` sees. `b` is the size of an element:
4 in float32, 2 in bfloat16. Letters as in `shapes`; Q = Hq D, K = Hk D.
"""

from __future__ import annotations

from paw_fast.planning.shapes import ModelShape

FLOAT32 = 4


def _norm(width: int, rows: int, b: int) -> int:
    """An RMSNorm over `rows` rows a token, `width` elements in all: its input in float32 (in float32 models the
    residual itself, which nothing else keeps), the normalized input, and a float32 factor for each row."""
    return width * (FLOAT32 + b) + rows * FLOAT32


def layer_bytes(shape: ModelShape, b: int, joined: bool = True, rank: int = 0) -> int:
    """Bytes a token that a layer keeps for its backward pass.

    rank: of LoRA adapters on its seven linear layers, each of which keeps `rank` elements more; the norms, whose
    weights are frozen then, do not keep their normalized inputs.

    joined: whether the attention of several sequences is computed one by one and concatenated, as on the CPU; the input
    of the output projection is then a copy.

    >>> shape = ModelShape("m", "llama", hidden=128, layers=3, heads=4, kv_heads=2, head_size=32, ffn=352, vocab=512)
    >>> layer_bytes(shape, 4), layer_bytes(shape, 2), layer_bytes(shape, 4, joined=False)
    (11288, 6168, 10776)
    """
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    norms = 2 * (_norm(shape.hidden, 1, b) + shape.hidden * b)  # with the output, which the projections keep
    if shape.model_type == "qwen3":
        norms += _norm(queries, shape.heads, b) + _norm(keys, shape.kv_heads, b)
    # Queries, repeated keys and values, output; the log-sum-exp of each head in float32.
    attention = (4 + joined) * queries * b + shape.heads * FLOAT32
    mlp = 4 * shape.ffn * b  # gate, its activation, up, their product
    if rank:
        normalized = 2 * shape.hidden + (queries + keys if shape.model_type == "qwen3" else 0)
        return norms + attention + mlp + (7 * rank - normalized) * b
    return norms + attention + mlp


def checkpoint_bytes(shape: ModelShape, b: int) -> int:
    """Bytes a token that a layer keeps with gradient checkpointing: its input."""
    return shape.hidden * b


def outer_bytes(shape: ModelShape, b: int) -> int:
    """Bytes a token outside of the layers: token ids, sine and cosine of the positions, final norm, its output."""
    return 8 + 2 * shape.head_size * b + _norm(shape.hidden, 1, b) + shape.hidden * b


def update_bytes(shape: ModelShape, b: int, checkpointing: bool, joined: bool = True, rank: int = 0) -> int:
    """Bytes a token of the whole forward pass of an update; with checkpointing, also the layer that is recomputed.
    rank: of LoRA adapters."""
    layer = layer_bytes(shape, b, joined, rank)
    layers = shape.layers * checkpoint_bytes(shape, b) + layer if checkpointing else shape.layers * layer
    return layers + outer_bytes(shape, b)


def backward_bytes(shape: ModelShape, b: int) -> int:
    """Most bytes a token that the backward pass through a layer holds beside what was kept: the residual's gradient,
    and in the MLP the gradients of the product and of its two factors, less the product, which is free by then."""
    return (2 * shape.hidden + 2 * shape.ffn) * b


def forward_bytes(shape: ModelShape, b: int) -> int:
    """Most bytes a token that a layer holds in a pass without gradient: the residual, the input, and of the MLP gate,
    activation and up; or queries, keys and values with their repeated copies and the output."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return 2 * shape.hidden * b + max(3 * shape.ffn, 5 * queries + 2 * keys) * b


def cache_bytes(shape: ModelShape, b: int) -> int:
    """Bytes a token of keys and values in the rollout engine."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * b
