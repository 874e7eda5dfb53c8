"""The policy: a Hugging Face causal LM whose layers see packed tokens.

T packed tokens, N rows with a loss, H hidden size, V vocabulary.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_layers import GradientCheckpointingLayer

from paw_fast.config import ModelConfig
from paw_fast.errors import UserError
from paw_fast.models import packed_attention
from paw_fast.models.forward_check import check_forward, refuse_stateful
from paw_fast.runs import console


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU. Raises `UserError` for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise UserError(f"--model.device {name}: not a device; say cpu, cuda or cuda:1") from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--model.device {name}: no CUDA device is visible to torch {torch.__version__}; say cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def logit_map(model: Any) -> tuple[float | None, float]:
    """(softcap, divisor): the model's logits are softcap(head(hidden)) / divisor; (None, 1.0) for most models.

    Gemma caps its logits, Granite divides them, Cohere multiplies them; a factor that a model applies before its
    cap is the same as one after a cap that much smaller.
    """
    config = model.config.get_text_config()
    factor = float(getattr(config, "logit_scale", None) or getattr(config, "output_multiplier", None) or 1.0)
    factor /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return (float(cap) / factor if cap else None), 1.0 / factor


def map_logits(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """What `model(...).logits` would be, from the head's bare output [..., V]."""
    softcap, divisor = logit_map(model)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits if divisor == 1.0 else logits / divisor


def without_dropout(model: Any) -> None:
    """Puts a model into evaluation mode for good, with gradient checkpointing at work where it is enabled.

    Dropout (and the noise of some routers) would make a token's log-prob differ from pass to pass, and with it the
    ratio to the rollout's: two passes must agree, training ones included. Transformers checkpoints only those layers
    that are in training mode, so these stay in it, but neither their parts nor any rate of their own.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            for name in _dropout_rates(vars(module)):
                setattr(module, name, 0.0)


def _dropout_rates(settings: dict[str, Any]) -> list[str]:
    """Names of the settings that are dropout rates or jitter above zero."""
    return [
        name for name, value in settings.items()
        if isinstance(value, float) and value > 0 and re.search(r"^(?!classifier|summary).*(drop|jitter)", name)
    ]  # fmt: skip


@dataclass
class Policy:
    """A model and its tokenizer. `logits` are computed for the rows that have a loss, and for no others.

    The model is put into evaluation mode: dropout is off in every pass, those of the update included. Raises
    `UserError` for a model that cannot run packed sequences, as far as its parts tell.
    """

    model: Any
    tokenizer: Any

    def __post_init__(self) -> None:
        refuse_stateful(self.model)
        without_dropout(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def lm_head(self) -> torch.nn.Linear:
        return self.model.get_output_embeddings()

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """Last hidden states [T, H] of packed sequences. input_ids, position_ids [T]; lengths sum to T."""
        if self.model.training:
            without_dropout(self.model)
        plan = packed_attention.PackedPlan(lengths)
        out = self.model.base_model(
            input_ids=input_ids[None], position_ids=position_ids[None], paw_plan=plan, use_cache=False
        )
        return out.last_hidden_state[0]

    def logits(self, input_ids: torch.Tensor, position_ids: torch.Tensor, plan: Any) -> torch.Tensor:
        """Logits [T, V] of packed tokens under an attention plan, as the model's own forward pass maps them."""
        out = self.model.base_model(
            input_ids=input_ids[None], position_ids=position_ids[None], paw_plan=plan, use_cache=False
        )
        return map_logits(self.model, self.lm_head(out.last_hidden_state[0]))

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Raises `UserError` naming the first parameter that holds NaN or an infinity. Copies nothing."""
    for key, parameter in model.named_parameters():
        if parameter.numel() and not all(bool(torch.isfinite(one)) for one in torch.aminmax(parameter.detach())):
            raise UserError(
                f"--model {name}: the parameter {key} holds NaN or infinite numbers: the model is damaged or its "
                "training has diverged; take an earlier checkpoint"
            )


def load_policy(path: str | Path, config: ModelConfig, trainable: bool = True) -> Policy:
    """Loads a causal LM and its tokenizer from a folder or hub name, on the device and dtype of `config`.

    Raises `UserError` with one line when there is no such model, it is damaged, or it cannot be used here; its packed
    forward pass is compared with its own (`forward_check`).
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    name = str(path)
    looks_local = (os.sep in name.rstrip(os.sep) and name.count("/") != 1) or name.startswith((".", "~", "/"))
    if looks_local and not Path(name).expanduser().is_dir():
        raise UserError(f"--model {name}: no such folder; give a Hugging Face model folder or a hub name")
    name = str(Path(name).expanduser()) if looks_local else name
    try:
        trust = config.trust_remote_code
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, attn_implementation=packed_attention.ATTENTION_NAME, trust_remote_code=trust
        )
    except KeyError as e:
        if e.args != (packed_attention.ATTENTION_NAME,):
            raise UserError(f"--model {name}: cannot be loaded as a causal LM: no {e}") from e
        raise UserError(
            f"--model {name}: models of this type have attention code of their own, which cannot run packed sequences: "
            "not supported; take one that uses transformers' attention interface"
        ) from e
    except Exception as e:
        if not config.trust_remote_code and "trust_remote_code" in str(e):
            raise UserError(
                f"--model {name} needs Python code that comes with it, which is not run unasked: if you trust it, say "
                "--model.trust-remote-code (with `paw-fast eval`: --trust-remote-code)"
            ) from e
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"--model {name}: cannot be loaded as a causal LM: {first}") from e
    check_finite(model, name)
    model.to(device)
    model.requires_grad_(trainable)
    if trainable and config.gradient_checkpointing:
        # Newer releases of transformers warn about the older name.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        try:
            enable({"use_reentrant": False})
        except ValueError as e:
            raise UserError(f"--model.gradient-checkpointing: {e}; say --model.no-gradient-checkpointing") from e
    try:
        policy = Policy(model, tokenizer)
    except UserError as e:
        raise UserError(f"--model {name}: {e}") from e
    check_forward(policy, name)
    if trainable and (rates := _dropout_rates(model.config.get_text_config().to_dict())):
        console.say(f"--model {name}: dropout is off ({', '.join(rates)} in its config): log-probs must repeat")
    return policy
