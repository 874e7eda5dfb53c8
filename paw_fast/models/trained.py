"""Loads the policy that a run trains, and the reference of its KL term."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.models.policy import BasePolicy, Policy, load_policy
from paw_fast.runs import console


def load_trained_policy(config: TrainConfig, first: str | Path, checkpoint: Path | None) -> Policy:
    """The policy of a run: the model that training starts with, or that of a checkpoint.

    With `lora.rank`, new adapters on the model `first`, or those of the checkpoint on it. Raises `UserError` as
    `load_policy` does.
    """
    if not config.lora.rank:
        return load_policy(checkpoint or first, config.model)
    policy = load_policy(first, config.model, lora=config.lora, saved=checkpoint, seed=config.seed)
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    console.say(f"LoRA: {trained / 1e6:.2f} M of {policy.num_parameters() / 1e6:.2f} M parameters are trained")
    return policy


def load_reference(config: TrainConfig, first: str | Path, policy: Policy) -> Policy | None:
    """The frozen policy that training starts with, or None where there is no KL term.

    With adapters it is the policy's own model without them, and needs no memory. With `offload.reference` on a GPU its
    weights stay in the CPU's memory.
    """
    if config.algo.kl_coef <= 0:
        return None
    if policy.adapter is not None:
        return BasePolicy(policy.model, policy.tokenizer, policy.adapter, policy.base)
    if not config.offload.reference or policy.device.type != "cuda":
        return load_policy(first, config.model, trainable=False)
    dtype = str(policy.model.dtype).removeprefix("torch.")
    on_cpu = replace(config.model, device="cpu", dtype=dtype)  # pyright: ignore[reportArgumentType]
    reference = load_policy(first, on_cpu, trainable=False)
    offload(reference, policy.device)
    return reference


def require_accelerate() -> None:
    """Raises `UserError`, with the command that installs it, if accelerate is missing."""
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise UserError(f"--offload.reference needs accelerate: {install_hint('offload')}") from error


def offload(policy: Policy, device: object) -> None:
    """Keeps a policy's weights on the CPU and copies each layer's to `device` while it runs. Without gradient only."""
    require_accelerate()
    import accelerate

    accelerate.cpu_offload(policy.model, execution_device=device)  # pyright: ignore[reportArgumentType]
