"""Refuses settings of TRL that are not supported."""

from __future__ import annotations

from typing import Any, NoReturn

from paw_fast.errors import UserError
from paw_fast.integrations.settings import PawConfig

__all__ = ["PawConfig", "check_adapter", "check_arguments", "check_model", "refuse"]


def check_arguments(args: Any, has_observations: bool, enabled: bool) -> None:
    """Raises `UserError` for settings of a `GRPOConfig` that are not supported, before a model is loaded.

    has_observations: whether the trainer gets tools, environments or a rollout function.
    """
    if enabled and not has_observations:
        raise UserError(
            "PawGRPOTrainer: there are no observations to predict: pass environment_factory, tools or a rollout_func "
            "that returns env_mask, or paw=PawConfig(enabled=False)"
        )
    if args is None:
        return
    refused: dict[str, bool] = {
        "use_vllm=True with vllm_mode='server'": args.use_vllm and args.vllm_mode == "server",
        "use_liger_kernel=True": args.use_liger_kernel,
        "fp16=True": args.fp16,
        "torch_compile=True": args.torch_compile,
        "deepspeed": args.deepspeed is not None,
        "fsdp": bool(args.fsdp),
    }
    for name, given in refused.items():
        if given:
            refuse(name)


def refuse(name: str) -> NoReturn:
    """Raises `UserError` for a setting of TRL."""
    sharded = "the kernels read the whole LM head: use plain data parallelism (accelerate launch), or GRPOTrainer"
    instead = {
        "use_vllm=True with vllm_mode='server'": "use vllm_mode='colocate', or use_vllm=False",
        "use_liger_kernel=True": "leave it out: the LM head and its loss are fused here already",
        "fp16=True": "use bf16=True: without the loss scale inside the kernels, small float16 gradients become 0",
        "torch_compile=True": "leave it out",
        "deepspeed": sharded,
        "fsdp": sharded,
    }
    raise UserError(f"PawGRPOTrainer: {name} is not supported: {instead[name]}")


def check_model(model: Any, is_multimodal: bool, aux_loss: bool) -> None:
    """Raises `UserError` for models that are not supported. model: the one inside PEFT's wrapper, if there is one."""
    text_config = model.config.get_text_config()
    if is_multimodal:
        raise UserError("PawGRPOTrainer: multimodal models are not supported: pass a tokenizer as processing_class")
    if aux_loss:
        raise UserError(
            "PawGRPOTrainer: the load-balancing loss of mixture-of-experts models is not supported: set "
            "GRPOConfig(router_aux_loss_coef=0.0)"
        )
    if getattr(text_config, "lm_head_multiplier", None) is not None or text_config.model_type == "hyperclovax":
        raise UserError(f"PawGRPOTrainer: {text_config.model_type} models scale their logits in a way not supported")
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight") or not head.weight.is_floating_point():
        raise UserError(f"PawGRPOTrainer: an LM head of type {type(head).__name__} is not supported: use a plain one")


def check_adapter(model: Any) -> None:
    """Raises `UserError` for PEFT methods that add tokens to the prompt, by which positions would shift."""
    active = getattr(model, "active_peft_config", None)
    if active is not None and active.is_prompt_learning:
        raise UserError(
            f"PawGRPOTrainer: the PEFT method {active.peft_type} adds virtual tokens, which is not supported: use LoRA"
        )
