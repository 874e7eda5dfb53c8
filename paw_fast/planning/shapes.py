"""Finds the shape of a model without loading it: from its config.json, or from a table of known models.

H hidden size, V vocabulary, L layers, F intermediate size, Hq query heads, Hk key/value heads, D head size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.models.smollm2 import SMOLLM2

DENSE = ("llama", "mistral", "qwen2", "qwen3")
"""Model types with the layers that `activations` counts: attention with shared keys, SwiGLU, two RMSNorms."""


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder that decide its memory. Produced by `find_shape`, consumed by `memory` and `step_time`.

    >>> ModelShape("m", "llama", hidden=8, layers=1, heads=2, kv_heads=1, head_size=4, ffn=16, vocab=10).num_parameters
    680
    """

    name: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    tied: bool = True
    max_positions: int | None = None

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: attention, MLP, norms."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        bias = queries + 2 * keys if self.model_type == "qwen2" else 0
        norms = 2 * self.hidden + (2 * self.head_size if self.model_type == "qwen3" else 0)
        return self.hidden * (2 * queries + 2 * keys) + bias + 3 * self.hidden * self.ffn + norms

    @property
    def head_parameters(self) -> int:
        """V x H: the LM head, which is the embedding too where they are tied."""
        return self.vocab * self.hidden

    @property
    def num_parameters(self) -> int:
        return self.backbone_parameters + (0 if self.tied else self.head_parameters)

    @property
    def backbone_parameters(self) -> int:
        """All parameters but those of an LM head of its own."""
        return self.layers * self.layer_parameters + self.hidden + self.head_parameters

    def adapter_parameters(self, rank: int, head: bool = False) -> int:
        """Parameters of LoRA adapters: rank x (inputs + outputs) of the seven linear layers of each layer, and of the
        LM head.

        >>> ModelShape("m", "llama", hidden=8, layers=1, heads=2, kv_heads=1, head_size=4, ffn=16, vocab=10).\
                adapter_parameters(2)
        256
        """
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        each = attention + 3 * (self.hidden + self.ffn)
        return rank * (self.layers * each + (self.hidden + self.vocab if head else 0))

    @property
    def largest_parameter(self) -> int:
        """Elements of the largest weight matrix."""
        return max(self.head_parameters, self.hidden * self.ffn)


def _qwen(name: str, hidden: int, layers: int, heads: int, kv: int, ffn: int, vocab: int, tied: bool) -> ModelShape:
    return ModelShape(name, "qwen2", hidden, layers, heads, kv, hidden // heads, ffn, vocab, tied, 32768)


_KNOWN = (
    # config.json of the Qwen2.5 Instruct models on the Hugging Face hub; also table 1 of arXiv 2412.15115.
    _qwen("Qwen/Qwen2.5-0.5B-Instruct", 896, 24, 14, 2, 4864, 151936, True),
    _qwen("Qwen/Qwen2.5-1.5B-Instruct", 1536, 28, 12, 2, 8960, 151936, True),
    _qwen("Qwen/Qwen2.5-3B-Instruct", 2048, 36, 16, 2, 11008, 151936, True),
    _qwen("Qwen/Qwen2.5-7B-Instruct", 3584, 28, 28, 4, 18944, 152064, False),
    _qwen("Qwen/Qwen2.5-14B-Instruct", 5120, 48, 40, 8, 13824, 152064, False),
    # config.json of Llama 3.2 and SmolLM2.
    ModelShape("meta-llama/Llama-3.2-1B-Instruct", "llama", 2048, 16, 32, 8, 64, 8192, 128256, True, 131072),
    ModelShape("meta-llama/Llama-3.2-3B-Instruct", "llama", 3072, 28, 24, 8, 128, 8192, 128256, True, 131072),
    ModelShape("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", 576, 30, 9, 3, 64, 1536, 49152, True, 8192),
)
KNOWN_SHAPES = {shape.name: shape for shape in _KNOWN}
"""Shapes of the recipes' models by hub name, for machines whose cache does not hold the model."""

_TINY = ModelShape("tiny", "llama", 256, 2, 8, 2, 32, 1024, 1024, True, 4096)
"""The defaults of `models.tiny.build_model`."""
_TINY_NAMES = 1000
"""`models.tiny.MAX_NAMES`: most tokens that its tokenizer adds to `warm_start.vocab_size`."""


def find_shape(config: TrainConfig) -> ModelShape:
    """The shape of the model of `--model`: a folder, `tiny`, `smollm2-135m`, a cached or a known hub model.

    Raises `UserError` where there is no config.json to read, and for types whose memory cannot be predicted.
    """
    name = config.model.path
    if name == "tiny":
        w = config.warm_start
        vocab = w.vocab_size + _TINY_NAMES
        return replace(_TINY, layers=w.layers, vocab=vocab, kv_heads=_TINY.heads if w.copying else _TINY.kv_heads)
    if name == SMOLLM2:
        return KNOWN_SHAPES["HuggingFaceTB/SmolLM2-135M-Instruct"]
    folder = Path(name).expanduser()
    path = folder / "config.json" if folder.is_dir() else _cached_config(name)
    if path is None:
        known = KNOWN_SHAPES.get(name) or KNOWN_SHAPES.get(f"{name}-Instruct")
        if known is None:
            raise UserError(
                f"--model {name}: its config.json is neither in a folder of that name nor in the cache of the Hugging "
                "Face hub: download the model first, or give its folder"
            )
        return known
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name}: {path} cannot be read: {error}") from error
    return read_shape(values, name, path)


def _cached_config(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not a name that the hub could have
        return None
    return Path(found) if isinstance(found, str) else None


_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "vocab_size", "tie_word_embeddings",
)  # fmt: skip


def read_shape(values: Mapping[str, Any], name: str, path: Path | None = None) -> ModelShape:
    """The shape in a parsed config.json. A key that it lacks has the default of the model's class in transformers,
    which is imported only then. Raises `UserError` for model types other than `DENSE`, and without `path` for a missing
    key."""
    kind = str(values.get("model_type"))
    if kind not in DENSE:
        raise UserError(
            f"--model {name}: memory can be predicted for models of type {', '.join(DENSE)}, and this one is {kind}"
        )
    needed = (*_KEYS, "head_dim") if kind == "qwen3" else _KEYS
    if any(values.get(key) is None for key in needed) and path is not None:
        from transformers import AutoConfig

        values = {**AutoConfig.from_pretrained(path.parent).to_dict(), **values}
    missing = [key for key in _KEYS if values.get(key) is None]
    if missing:
        raise UserError(f"--model {name}: config.json has no {missing[0]}")
    heads = int(values["num_attention_heads"])
    return ModelShape(
        name, kind, hidden=int(values["hidden_size"]), layers=int(values["num_hidden_layers"]), heads=heads,
        kv_heads=int(values["num_key_value_heads"]),
        head_size=int(values.get("head_dim") or int(values["hidden_size"]) // heads),
        ffn=int(values["intermediate_size"]), vocab=int(values["vocab_size"]),
        tied=bool(values["tie_word_embeddings"]), max_positions=values.get("max_position_embeddings"),
    )  # fmt: skip
