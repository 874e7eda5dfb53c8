"""Loads the policy, a Hugging Face causal LM, and runs it on packed sequences.

Shapes: T packed tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_layers import GradientCheckpointingLayer

from paw_fast.config import LoraConfig, ModelConfig
from paw_fast.errors import UserError
from paw_fast.models import packed_attention
from paw_fast.models.forward_check import check_forward, reject_stateful
from paw_fast.models.hub import check_model, use_cache_only
from paw_fast.models.lora import AdapterFiles, add_adapters, base_layer, without_adapters
from paw_fast.runs import console
from paw_fast.runs.adapter import base_of, is_adapter, load_adapter
from paw_fast.runs.memory_errors import describe_out_of_memory


def resolve_device(name: str) -> torch.device:
    """Returns the torch device; `auto` selects CUDA if available, else the CPU. Raises `UserError` if unavailable."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise UserError(f"--model.device {name}: not a device; use cpu, cuda or cuda:1") from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--model.device {name}: no CUDA device is visible to torch {torch.__version__}; use cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the torch dtype; `auto` selects bfloat16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def logit_map(model: Any) -> tuple[float | None, float]:
    """Returns (softcap, divisor) such that the logits of the model are softcap(head(hidden)) / divisor.

    It is (None, 1.0) for most models. Gemma caps its logits, Granite divides them and Cohere multiplies them. A factor
    f before a cap c is expressed as a cap c / f followed by the factor f.
    """
    config = model.config.get_text_config()
    factor = float(getattr(config, "logit_scale", None) or getattr(config, "output_multiplier", None) or 1.0)
    factor /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return (float(cap) / factor if cap else None), 1.0 / factor


def map_logits(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Returns `model(...).logits`, given the output [..., V] of the LM head."""
    softcap, divisor = logit_map(model)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits if divisor == 1.0 else logits / divisor


def disable_dropout(model: Any) -> None:
    """Disables dropout and router noise in all forward passes, including those of the update.

    The log-prob of a token must not vary between passes, because the probability ratio compares two of them. The model
    is put into evaluation mode, except for layers with gradient checkpointing: transformers checkpoints layers only in
    training mode. Those stay in it, with their submodules in evaluation mode and their own dropout rates set to 0.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            for name in _dropout_rates(vars(module)):
                setattr(module, name, 0.0)


def _dropout_rates(settings: dict[str, Any]) -> list[str]:
    """Returns the names of settings that are positive dropout rates or jitters."""
    return [
        name for name, value in settings.items()
        if isinstance(value, float) and value > 0 and re.search(r"^(?!classifier|summary).*(drop|jitter)", name)
    ]  # fmt: skip


@dataclass
class Policy:
    """A model and its tokenizer.

    Dropout is disabled in all forward passes, including those of the update. Raises `UserError` for models whose layer
    types show that they cannot run packed sequences. adapter: the `peft.PeftModel` around a model with LoRA adapters,
    which alone are trained then; base: the name of the model without them.
    """

    model: Any
    tokenizer: Any
    adapter: Any = None
    base: str = ""

    def __post_init__(self) -> None:
        reject_stateful(self.model)
        disable_dropout(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def lm_head(self) -> torch.nn.Linear:
        return self.model.get_output_embeddings()

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """Returns the last hidden states [T, H] of packed sequences.

        input_ids, position_ids: [T]. lengths: number of tokens of each sequence, summing to T.
        """
        if self.model.training:
            disable_dropout(self.model)
        plan = packed_attention.PackedPlan(lengths)
        out = self.model.base_model(
            input_ids=input_ids[None], position_ids=position_ids[None], paw_plan=plan, use_cache=False
        )
        return out.last_hidden_state[0]

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor, plan: Any) -> torch.Tensor:
        """Returns the logits [T, V] of packed tokens under an attention plan, including the model's softcap."""
        out = self.model.base_model(
            input_ids=input_ids[None], position_ids=position_ids[None], paw_plan=plan, use_cache=False
        )
        return map_logits(self.model, self.lm_head(out.last_hidden_state[0]))

    @property
    def saved_model(self) -> Any:
        """What a checkpoint saves, with a method `save_pretrained`: the model, or its adapter."""
        return self.model if self.adapter is None else AdapterFiles(self.adapter, self.base)

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def check_finite(model: torch.nn.Module, what: str, advice: str) -> None:
    """Raises `UserError`, which names the first parameter that contains NaN or infinite values. Makes no copies."""
    for key, parameter in model.named_parameters():
        if parameter.numel() and not all(bool(torch.isfinite(one)) for one in torch.aminmax(parameter.detach())):
            raise UserError(f"{what}: the parameter {key} contains NaN or infinite values: {advice}")


def load_policy(
    path: str | Path, config: ModelConfig, trainable: bool = True, lora: LoraConfig | None = None,
    saved: Path | None = None, seed: int = 0,
) -> Policy:  # fmt: skip
    """Loads a causal LM and its tokenizer from a folder or the Hugging Face hub.

    Args:
        path: model folder or hub name. The adapter in a folder of PEFT's is merged into its base model.
        config: device, dtype and further settings.
        trainable: whether the parameters require gradients.
        lora: settings of adapters, which alone are trained then; None for none.
        saved, seed: where the adapters are loaded from, or the seed that they are drawn with (see `add_adapters`).

    The packed forward pass is compared with the standard one (`forward_check`). Raises `UserError` if the model does
    not exist, is damaged or is not supported.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    name = str(path)
    check_model(name)
    name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        base = base_of(Path(name)) if is_adapter(Path(name)) else name
        trust, offline = config.trust_remote_code, use_cache_only(base)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust, local_files_only=offline)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            base,
            dtype=dtype,
            attn_implementation=packed_attention.ATTENTION_NAME,
            trust_remote_code=trust,
            local_files_only=offline,
        )
        if base != name:
            model = load_adapter(model, Path(name), trainable=False).merge_and_unload()
    except UserError:
        raise
    except KeyError as e:
        if e.args != (packed_attention.ATTENTION_NAME,):
            raise UserError(f"--model {name}: cannot be loaded as a causal LM: no {e}") from e
        raise UserError(
            f"--model {name}: models of this type do not use the attention interface of transformers, so they cannot "
            "run packed sequences: not supported; use another model"
        ) from e
    except Exception as e:
        if describe_out_of_memory(e) is not None:
            raise
        if not config.trust_remote_code and "trust_remote_code" in str(e):
            raise UserError(
                f"--model {name} requires its own Python code, which is not run by default: if you trust it, add "
                "--model.trust-remote-code (with `paw-fast eval`: --trust-remote-code)"
            ) from e
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"--model {name}: cannot be loaded as a causal LM: {first}") from e
    check_finite(
        model, f"--model {name}", "the model is damaged or its training has diverged; use an earlier checkpoint"
    )
    model.to(device)
    model.requires_grad_(trainable)
    adapter = None
    if lora is not None:
        if base != name:
            raise UserError(f"--lora.rank: {name} is a LoRA adapter itself: merge it into its base model {base} first")
        adapter = add_adapters(model, lora, name, saved, seed)
        base = str(Path(base).absolute()) if Path(base).is_dir() else base
    if trainable and config.gradient_checkpointing:
        # Newer releases of transformers warn about the old name.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        try:
            enable({"use_reentrant": False})
        except ValueError as e:
            raise UserError(f"--model.gradient-checkpointing: {e}; use --model.no-gradient-checkpointing") from e
    try:
        policy = Policy(model, tokenizer, adapter, base)
    except UserError as e:
        raise UserError(f"--model {name}: {e}") from e
    check_forward(policy, name)
    if trainable and (rates := _dropout_rates(model.config.get_text_config().to_dict())):
        console.say(f"--model {name}: dropout is disabled ({', '.join(rates)} in its config)")
    return policy


class BasePolicy(Policy):
    """The base model of a policy with adapters, on the same weights: the reference of the KL term."""

    @property
    def lm_head(self) -> torch.nn.Linear:
        return base_layer(self.model.get_output_embeddings())

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """As `Policy.hidden`, without the adapters. Without gradient."""
        with torch.no_grad(), without_adapters(self.adapter):
            return super().hidden(input_ids, position_ids, lengths)
