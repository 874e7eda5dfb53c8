"""Adds low-rank adapters (LoRA, arXiv 2106.09685) to a policy through PEFT, and computes the merged weights.

    y = x W^T + (alpha / rank) dropout(x) A^T B^T        W [out, in] frozen, A [rank, in], B [out, rank] trained

B is zero at first, so that the policy begins as the base model. The adapters have the data type of the weights: the
optimizer keeps float32 copies of them where that is 16 bits (`learner.optim`). PEFT's layers are put into the model in
place, so it is run, packed and generated from as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paw_fast.config import LoraConfig
from paw_fast.errors import UserError
from paw_fast.models.forward_check import has_experts
from paw_fast.runs.adapter import load_adapter, quiet, require_peft

_NAME = "default"
"""PEFT's name of the adapter inside the model."""


class UpdateDropout(nn.Module):
    """Dropout in passes with gradient only: token statistics, rollouts and the reference have none.

    >>> drop = UpdateDropout(0.5)
    >>> with torch.no_grad():
    ...     drop(torch.ones(2))
    tensor([1., 1.])
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, training=torch.is_grad_enabled())


def add_adapters(model: Any, config: LoraConfig, name: str, saved: Path | None = None, seed: int = 0) -> Any:
    """Puts adapters into a model, freezes everything else, and returns the `peft.PeftModel` around it.

    Args:
        model: the base model, in its final data type and on its device.
        config: rank, scale, dropout, and whether the LM head gets an adapter.
        name: the model's name for error messages.
        saved: a checkpoint whose adapter is loaded; None makes a new one.
        seed: of the random numbers that A is drawn from. The global random state is unchanged.

    Raises `UserError` if PEFT is missing, and for models whose layers cannot all be adapted.
    """
    require_peft("--lora.rank")
    import peft

    if has_experts(model):
        raise UserError(
            f"--model {name}: its experts are no linear layers, so LoRA would leave most of it out: not supported; "
            "train its weights (--lora.rank 0)"
        )
    head = model.get_output_embeddings()
    if config.head and head.weight is model.get_input_embeddings().weight:
        raise UserError(
            f"--lora.head: the LM head of {name} shares its weights with the input embedding, so its adapter could not "
            "be merged: leave it out"
        )
    if saved is not None:
        adapter = load_adapter(model, saved, trainable=True)
    else:
        layers = {path.rpartition(".")[2] for path, m in model.named_modules() if isinstance(m, nn.Linear)}
        targets = layers - {path.rpartition(".")[2] for path, m in model.named_modules() if m is head}
        settings = peft.LoraConfig(
            task_type=peft.TaskType.CAUSAL_LM, r=config.rank, lora_alpha=config.alpha,  # pyright: ignore
            lora_dropout=config.dropout, target_modules=sorted(layers if config.head else targets), bias="none",
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(seed)
            adapter = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    for module in _adapted(model).values():
        if config.dropout > 0:
            module.lora_dropout[_NAME] = UpdateDropout(config.dropout)
    return adapter


def _adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter by their names in the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "lora_B")
    }


def has_adapters(model: nn.Module) -> bool:
    """Whether layers of the model have adapters."""
    return bool(_adapted(model))


def without_adapters(adapter: Any) -> AbstractContextManager[Any]:
    """A context in which the model is its base. adapter: what `add_adapters` returned, or None for a plain model."""
    return nullcontext() if adapter is None else adapter.disable_adapter()


def base_layer(layer: Any) -> Any:
    """A layer without its adapter."""
    return layer.get_base_layer() if hasattr(layer, "lora_A") else layer


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights of a model with adapters as those of a plain model: W + (alpha / rank) B A, under the names of
    a checkpoint. One merged weight exists at a time; it is computed in float32 at least, and rounded once. Tied weights
    are yielded once."""
    adapted, seen = _adapted(model), set()
    for name, tensor in model.state_dict().items():
        owner = next((one for one in _parents(name) if one in adapted), None)
        if owner is not None and not name.startswith(f"{owner}.base_layer."):
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key in seen:
            continue
        seen.add(key)
        tensor = tensor.detach()
        if owner is not None:
            name = name.replace(".base_layer.", ".")
            if name == f"{owner}.weight":
                tensor = _merge(adapted[owner], tensor)
        yield name, tensor


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _merge(layer: Any, weight: Tensor) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    a, b = layer.lora_A[_NAME].weight.to(dtype), layer.lora_B[_NAME].weight.to(dtype)
    return torch.addmm(weight.to(dtype), b, a, alpha=layer.scaling[_NAME]).to(weight.dtype)


@dataclass(frozen=True)
class AdapterFiles:
    """Writes the adapter of a policy into a checkpoint, in place of the whole model.

    base: the base model's folder or name on the Hub, which `adapter_config.json` names.
    """

    adapter: Any
    base: str

    def save_pretrained(self, folder: Path) -> None:
        """Writes the adapter in PEFT's format, and the configuration of the base model."""
        self.adapter.peft_config[_NAME].base_model_name_or_path = self.base
        self.adapter.save_pretrained(folder, save_embedding_layers=False)
        (Path(folder) / "README.md").unlink(missing_ok=True)  # PEFT's model card
        model = self.adapter.get_base_model()
        model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)
