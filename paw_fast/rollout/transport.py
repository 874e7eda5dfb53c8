"""Chooses how weights travel from the trainer to worker processes."""

from __future__ import annotations

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.models.policy import Policy
from paw_fast.rollout.weight_sync import IpcPublisher, NcclPublisher, Publisher, SharedMemoryPublisher, Weights


def make_publisher(config: TrainConfig, policy: Policy, weights: Weights | None = None) -> tuple[Publisher, str]:
    """Makes the trainer's side of `--rollout.transport`, and names the transport that was chosen.

    weights: what gathers the weights of a sharded policy; None where this process has them whole.

    Raises `UserError` for a transport that does not reach the workers.
    """
    r, kind = config.rollout, config.rollout.transport
    if kind == "auto":
        on_card = policy.device.type == "cuda" and r.engine == "vllm" and weights is None
        # CUDA IPC shares tensors as they are, and adapters are merged for the engine.
        kind = ("nccl" if r.gpus else "shared" if config.lora.rank else "ipc") if on_card else "shared"
    if kind in ("ipc", "nccl") and policy.device.type != "cuda":
        raise UserError(
            f"--rollout.transport {kind} carries weights between GPUs, and the model is on the {policy.device.type}: "
            "say shared, or auto"
        )
    if kind == "ipc" and r.gpus:
        raise UserError(
            f"--rollout.transport ipc stays on one card, and --rollout.gpus is {r.gpus}: say nccl, or leave out gpus"
        )
    if kind == "nccl" and (r.engine != "vllm" or not r.gpus):
        raise UserError(
            "--rollout.transport nccl needs --rollout.engine vllm on cards of its own (--rollout.gpus): say auto"
        )
    if kind == "ipc":
        return IpcPublisher(policy.model), kind
    if kind == "nccl":
        return NcclPublisher(policy.model, r.tensor_parallel), kind
    return SharedMemoryPublisher(policy.model, weights), kind
