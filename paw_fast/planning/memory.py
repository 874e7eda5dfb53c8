"""Predicts the peak memory of the trainer's device and of rollout GPUs, part by part.

    parts ──> phases: rollout, token statistics, update, optimizer step ──> peak: the largest phase

Weights, gradients, optimizer states and activations are counted from the model's shape. What cannot be counted is a
constant with its source beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from paw_fast import registry
from paw_fast.config import TrainConfig
from paw_fast.planning.activations import (
    FLOAT32,
    backward_bytes,
    cache_bytes,
    forward_bytes,
    layer_bytes,
    update_bytes,
)
from paw_fast.planning.machine import GIB, MIB, Machine
from paw_fast.planning.shapes import ModelShape
from paw_fast.planning.workload import Workload

PHASES = ("rollout", "token statistics", "update", "optimizer step")
ROLLOUT, STATISTICS, UPDATE, OPTIMIZER = PHASES

PROCESS_BYTES = {"cpu": 420 * MIB, "cuda": 700 * MIB}
"""`cpu`: resident memory of a process that has imported what training needs, measured by bench/plan.py. `cuda`:
assumption for the CUDA context with the workspaces of cuBLAS and of the kernels."""
CUDA_FRAGMENTATION = 0.04
"""Assumption: share of the peak that torch's allocator holds on a GPU in blocks that do not fit a request."""
VLLM_OVERHEAD = 2 * GIB
"""Assumption: vLLM's activations, CUDA graphs and context, beside its weights and cache."""
PREFILL_TOKENS = 16384
"""`rollout.engines.transformers.PREFILL_TOKENS`: prompt tokens that pass through the model together."""
FIRST_CAPACITY = 256
"""Tokens that a slot of `models.packed_attention.SlotCache` holds at first; the capacity doubles."""
CPU_CHUNK_BYTES, CUDA_CHUNK_SHARE = 256 * MIB, 0.026
"""Those of `kernels.linear_paw_loss`, whose import would import torch; a test compares them."""


@dataclass(frozen=True)
class Part:
    """Memory that is held in some phases. note: how many bytes it is counted from, in words."""

    name: str
    size: int
    phases: tuple[str, ...] = PHASES
    note: str = ""


@dataclass(frozen=True)
class Prediction:
    """Predicted memory of one device, in bytes. Produced by `predict_trainer` and `predict_rollout`.

    >>> found = Prediction("gpu", 100, (Part("a", 40), Part("b", 30, (UPDATE,)), Part("c", 50, (ROLLOUT,))))
    >>> found.peak, found.peak_phase, found.fits
    (90, 'rollout', True)
    """

    device: str
    available: int
    parts: tuple[Part, ...]

    def phase(self, name: str) -> int:
        return sum(part.size for part in self.parts if name in part.phases)

    @property
    def peak_phase(self) -> str:
        return max(PHASES, key=self.phase)

    @property
    def peak(self) -> int:
        return self.phase(self.peak_phase)

    @property
    def fits(self) -> bool:
        return self.peak <= self.available


def element_size(config: TrainConfig, kind: str) -> int:
    """Bytes of a weight: `model.dtype`, whose `auto` is bfloat16 on CUDA and float32 on the CPU."""
    name = config.model.dtype
    return FLOAT32 if name == "float32" or (name == "auto" and kind == "cpu") else 2


def chunk_bytes(config: TrainConfig, machine: Machine) -> int:
    """Bytes of the largest chunk of logits: the setting, or what `linear_paw_loss.default_chunk_bytes` gives."""
    if config.logits_budget_mb != "auto":
        return config.logits_budget_mb * MIB
    return CPU_CHUNK_BYTES if machine.kind == "cpu" else int(CUDA_CHUNK_SHARE * machine.card.memory)


def needs_critic(config: TrainConfig) -> bool:
    """Whether the algorithm learns a value function."""
    return registry.find("algorithms", config.algo.name).needs_critic


def rollouts_share_device(config: TrainConfig) -> bool:
    """Whether rollouts run on the trainer's device."""
    return config.rollout.placement == "inline" or not config.rollout.gpus


def predict_trainer(
    config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload, shards: int = 1
) -> Prediction:
    """Predicts the memory of a device that trains.

    config: its `auto` settings count as `micro_batch_tokens`, `chunk_bytes` and no checkpointing. shards: devices
    among which weights, gradients and optimizer states are split (FSDP); 1 today.
    """
    cuda, b = machine.kind == "cuda", element_size(config, machine.kind)
    parameters = shape.num_parameters // shards
    parts = [Part("process" if not cuda else "CUDA context", PROCESS_BYTES[machine.kind])]
    parts.append(Part("weights", parameters * b, note=f"{shape.num_parameters / 1e9:.3g} B parameters x {b} bytes"))
    if config.algo.kl_coef > 0:
        parts.append(Part("reference model", parameters * b, note="for --algo.kl-coef"))
    parts += _optimizer(parameters, shape.largest_parameter, b, cuda, "")
    if needs_critic(config) and config.critic.backbone == "own":
        learned = shape.backbone_parameters // shards
        parts.append(Part("critic: weights", parameters * b))
        parts += _optimizer(learned, shape.largest_parameter, b, cuda, "critic: ", phases=(STATISTICS, UPDATE))
    parts += _passes(config, shape, machine, work, b, shards)
    if rollouts_share_device(config):
        parts += _rollouts(config, shape, machine, work, b)
    if cuda:
        peak = Prediction("", 0, tuple(parts)).peak
        parts.append(Part("allocator", int(CUDA_FRAGMENTATION * peak), note=f"{CUDA_FRAGMENTATION:.0%} of the peak"))
    return Prediction(f"trainer: {machine.card.name}", machine.card.memory, tuple(parts))


def _optimizer(
    parameters: int, largest: int, b: int, cuda: bool, name: str, phases: tuple[str, ...] = ()
) -> list[Part]:
    """Gradients, AdamW's states, and what its step holds for a moment (`learner.optim.MasterAdamW`). `phases`: further
    phases in which the gradients exist."""
    states, words = (2, "two moments") if b == FLOAT32 else (3, "two moments, weights in float32")
    # 16-bit gradients are widened, all together. A step of torch's AdamW takes a square root of all moments together
    # on CUDA (foreach), and on the CPU of one parameter after another, in two temporaries.
    step = (parameters * FLOAT32 if b != FLOAT32 else 0) + (parameters if cuda else 2 * largest) * FLOAT32
    return [
        Part(f"{name}gradients", parameters * b, tuple(dict.fromkeys((*phases, UPDATE, OPTIMIZER)))),
        Part(f"{name}optimizer states", states * FLOAT32 * parameters, note=words),
        Part(f"{name}temporaries of AdamW", step, (OPTIMIZER,)),
    ]


def _passes(
    config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload, b: int, shards: int
) -> list[Part]:
    """Activations, logits and temporaries of the passes over packed tokens."""
    tokens = max(min(config.micro_batch_tokens, work.trained), work.longest)
    rows = max(1, min(tokens, -(-work.rows * tokens // max(1, work.trained))))
    joined = machine.kind == "cpu"
    checkpointing = config.model.checkpoints
    kept = tokens * update_bytes(shape, b, checkpointing, joined)
    row_bytes = shape.vocab * b
    logits = min(rows * row_bytes, max(row_bytes, chunk_bytes(config, machine)))
    head_gradient = shape.head_parameters * FLOAT32
    if checkpointing:  # the recomputed layer does not exist yet while the head runs
        in_head = logits + 2 * rows * shape.hidden * b - tokens * layer_bytes(shape, b, joined)
    else:
        in_head = logits + 2 * rows * shape.hidden * b
    in_layers = tokens * backward_bytes(shape, b) + (shape.layer_parameters * b if shards > 1 else 0)
    # At the end the activations are free, and the embedding's gradient is added to the head's.
    at_the_end = shape.head_parameters * b + tokens * shape.hidden * b - kept
    held = max(in_head, in_layers, at_the_end)
    phrase = f"{tokens} tokens x {kept / tokens / 1024:.0f} KiB" + (", checkpointed" if checkpointing else "")
    forward = tokens * forward_bytes(shape, b)
    return [
        Part("activations", kept, (UPDATE,), phrase),
        Part("gradient of the LM head", head_gradient, (UPDATE,), "float32"),
        Part("logits, temporaries of the backward", max(0, held), (UPDATE,), f"{logits / MIB:.0f} MiB of logits"),
        Part("forward pass", forward + rows * shape.hidden * b, (STATISTICS,)),
        Part("logits", 2 * logits, (STATISTICS,), "two chunks"),
    ]


def _rollouts(config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload, b: int) -> list[Part]:
    """What rollouts hold on the trainer's device: vLLM's share, or the transformers engine's cache."""
    r, parts = config.rollout, []
    processes = r.replicas if r.placement == "process" else 0
    if r.engine == "vllm" and machine.kind == "cuda":
        share = r.memory_share or 0.4
        return [Part("vLLM", int(share * machine.card.memory), note=f"--rollout.memory-share {share:g}")]
    if processes:
        parts.append(Part("workers: processes and weights", processes * (PROCESS_BYTES[machine.kind] + shape.num_parameters * b)))
    copies = max(1, processes)
    cache = copies * r.slots * slot_tokens(config, work) * cache_bytes(shape, b)
    parts.append(Part("keys and values", cache, note=f"{copies * r.slots} slots x {slot_tokens(config, work)} tokens"))
    prompts = min(PREFILL_TOKENS, r.slots * work.longest)
    # Sampling: logits, in float32, log-probs twice, and three float64 copies (engines/transformers.py).
    sampling = r.slots * shape.vocab * (b + 3 * FLOAT32 + 3 * 8)
    passing = prompts * forward_bytes(shape, b)
    parts.append(Part("generation", copies * max(sampling, passing), (ROLLOUT,), "prompts or sampling"))
    return parts


def slot_tokens(config: TrainConfig, work: Workload) -> int:
    """Tokens that a slot of the transformers engine holds: its capacity doubles until the longest sequence fits."""
    capacity = FIRST_CAPACITY
    while capacity < work.longest:
        capacity *= 2
    return min(capacity, config.rollout.max_sequence_tokens)


def predict_rollout(config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload) -> Prediction:
    """Predicts the memory of a GPU that only generates episodes."""
    r, b = config.rollout, element_size(config, machine.kind)
    weights = Part("weights", shape.num_parameters * b // r.tensor_parallel, (ROLLOUT,))
    if r.engine != "vllm":
        worker = [Part("CUDA context", PROCESS_BYTES["cuda"], (ROLLOUT,)), weights, *_rollouts(_inline(config), shape, machine, work, b)]
        return Prediction(f"rollouts: {machine.card.name}", machine.card.memory, tuple(worker))
    cache = vllm_cache(config, shape, work, b) // r.tensor_parallel
    parts = (weights, Part("vLLM: activations, graphs", VLLM_OVERHEAD, (ROLLOUT,)), Part("keys and values", cache, (ROLLOUT,), "least"))
    available = int((r.memory_share or 0.9) * machine.card.memory)
    return Prediction(f"rollouts: {machine.card.name}", available, parts)


def _inline(config: TrainConfig) -> TrainConfig:
    from dataclasses import replace

    return replace(config, rollout=replace(config.rollout, placement="inline", replicas=1, gpus=""))


def vllm_cache(config: TrainConfig, shape: ModelShape, work: Workload, b: int) -> int:
    """Least bytes of vLLM's cache: one sequence of the greatest length, which vLLM insists on, and eight typical ones,
    below which it generates few at a time."""
    limit = min(config.rollout.max_sequence_tokens, shape.max_positions or config.rollout.max_sequence_tokens)
    return max(limit, 8 * work.sequence) * cache_bytes(shape, b)


def vllm_least(config: TrainConfig, shape: ModelShape, work: Workload, b: int) -> int:
    """Least bytes with which vLLM can generate on one GPU."""
    return shape.num_parameters * b + VLLM_OVERHEAD + vllm_cache(config, shape, work, b)
