"""Predicts the peak memory of the trainer's device and of rollout GPUs, part by part.

    parts ──> phases: rollout, token statistics, update, optimizer step ──> peak: the largest phase

Weights, gradients, optimizer states and activations are counted from the model's shape. What cannot be counted is a
constant with its source beside it. Sizes are in bytes; P parameters, b bytes of a weight (4 or 2), T packed tokens of a
micro-batch, N of its rows with a loss; other letters as in `shapes`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

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

PROCESS_BYTES = {"cpu": 400 * MIB, "cuda": 700 * MIB}
"""`cpu`: resident memory of a process that has imported what training needs and has taken a step of a model of no size
(363 MiB, measured by bench/plan.py), and an environment. `cuda`: assumption for the CUDA context with the workspaces of
cuBLAS and of the kernels."""
CUDA_FRAGMENTATION = 0.04
"""Assumption: share of the peak that torch's allocator holds on a GPU in blocks that do not fit a request."""
GLIBC_SHARE = 0.5
"""Share of the tensors that glibc's malloc holds on the CPU beside them: 0.2 to 0.7, measured by bench/plan.py. Blocks
of up to 32 MiB come from its heap, whose free parts stay with the process. With `MALLOC_MMAP_THRESHOLD_` they are given
back, and the share is `PINNED_SHARE`."""
PINNED_SHARE = 0.03
MMAP_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
VLLM_SHARE = 0.4
"""Default of `rollout.memory_share` on the trainer's GPU (`rollout.factory.make_engine`); 0.9 on others."""
VLLM_OVERHEAD = 2 * GIB
"""Assumption: vLLM's activations, CUDA graphs and context, beside its weights and cache."""
PREFILL_TOKENS = 16384
"""`rollout.engines.transformers.PREFILL_TOKENS`: prompt tokens that pass through the model together."""
FIRST_CAPACITY = 256
"""Tokens that a slot of `models.packed_attention.SlotCache` holds at first; the capacity doubles."""

FITS, TIGHT, TOO_LARGE = "fits", "may not fit", "does not fit"


@dataclass(frozen=True)
class Part:
    """Memory that is held in some phases, in bytes. note: what it is counted from. estimated: what an allocator keeps
    beside the tensors, which no count gives."""

    name: str
    size: int
    phases: tuple[str, ...] = PHASES
    note: str = ""
    estimated: bool = False


@dataclass(frozen=True)
class Prediction:
    """Predicted memory of one device, in bytes. Produced by `predict_trainer` and `predict_rollout`.

    >>> found = Prediction("gpu", 100, (Part("a", 40), Part("b", 30, (UPDATE,)), Part("c", 50, (ROLLOUT,))))
    >>> found.peak, found.peak_phase, found.verdict
    (90, 'rollout', 'fits')
    """

    device: str
    available: int
    parts: tuple[Part, ...]

    def phase(self, name: str, estimated: bool = True) -> int:
        """Bytes in a phase, with or without the estimated parts."""
        return sum(part.size for part in self.parts if name in part.phases and (estimated or not part.estimated))

    @property
    def peak_phase(self) -> str:
        return max(PHASES, key=self.phase)

    @property
    def peak(self) -> int:
        return self.phase(self.peak_phase)

    @property
    def least(self) -> int:
        """The peak without what allocators keep: a device with less cannot hold the run."""
        return max(self.phase(name, estimated=False) for name in PHASES)

    @property
    def verdict(self) -> str:
        """`FITS`, `TIGHT` where only the estimated parts are too much, or `TOO_LARGE`."""
        return FITS if self.peak <= self.available else TIGHT if self.least <= self.available else TOO_LARGE

    @property
    def largest(self) -> Part:
        """The largest part of the phase with the peak."""
        return max((part for part in self.parts if self.peak_phase in part.phases), key=lambda part: part.size)


def element_size(config: TrainConfig, kind: str) -> int:
    """Bytes of a weight: `model.dtype`, whose `auto` is bfloat16 on CUDA and float32 on the CPU."""
    name = config.model.dtype
    return FLOAT32 if name == "float32" or (name == "auto" and kind == "cpu") else 2


def needs_critic(config: TrainConfig) -> bool:
    """Whether the algorithm learns a value function."""
    return registry.find("algorithms", config.algo.name).needs_critic


def rollouts_share_device(config: TrainConfig) -> bool:
    """Whether rollouts run on the trainer's device."""
    return config.rollout.placement == "inline" or not config.rollout.gpus


def predict_trainer(
    config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload, shards: int = 1
) -> Prediction:
    """Predicts the memory of the device that trains.

    shards: devices among which weights, gradients and optimizer states are split (FSDP); the trainer has 1 today.

    Weights and reference: P b. Gradients: P b. AdamW: two moments, 8 P, and for 16-bit weights float32 copies, 4 P.
    With LoRA, gradients and AdamW are of the adapters alone, and there is no reference model. The passes: see
    `_passes`; rollouts on the same device: `_rollouts`.
    """
    cuda, b = machine.kind == "cuda", element_size(config, machine.kind)
    parameters, lora = shape.num_parameters // shards, config.lora
    trained, largest, offloaded = parameters, shape.largest_parameter, config.offload.optimizer and cuda
    count = f"{shape.num_parameters / 1e9:.3g} B parameters x {b} bytes"
    parts = [
        Part("CUDA context" if cuda else "process", PROCESS_BYTES[machine.kind]),
        Part("weights", parameters * b, note=count),
    ]
    if lora.rank:
        trained = shape.adapter_parameters(lora.rank, lora.head) // shards
        largest = lora.rank * (shape.vocab if lora.head else max(shape.hidden, shape.ffn))
        parts.append(Part("adapters", trained * b, note=f"{trained / 1e6:.3g} M parameters, --lora.rank {lora.rank}"))
    elif config.algo.kl_coef > 0 and config.offload.reference and cuda:
        parts.append(Part("reference model", largest * b, (STATISTICS,), "offloaded: its largest layer"))
    elif config.algo.kl_coef > 0:
        parts.append(Part("reference model", parameters * b, note="for --algo.kl-coef"))
    parts += _optimizer(trained, largest, b, "", offloaded)
    if needs_critic(config) and config.critic.backbone == "own":
        learned = trained if lora.rank else shape.backbone_parameters // shards
        parts.append(Part("critic: weights", trained * b, note="adapters" if lora.rank else ""))
        parts += _optimizer(learned, largest, b, "critic: ", offloaded)
    parts += _passes(config, shape, machine, work, b, shards)
    if rollouts_share_device(config):
        parts += _rollouts(config, shape, machine, work, b)
    parts.append(_allocator(machine.kind, parts))
    return Prediction(f"trainer: {machine.card.name}", machine.card.memory, tuple(parts))


def _allocator(kind: str, parts: list[Part]) -> Part:
    """What the allocator keeps beside the tensors at the peak. vLLM's share and the process are none of its own."""
    fixed = sum(part.size for part in parts if part.name in ("vLLM", "process", "CUDA context"))
    peak = Prediction("", 0, tuple(parts)).peak - fixed
    if kind == "cuda":
        share, note = CUDA_FRAGMENTATION, f"{CUDA_FRAGMENTATION:.0%} of the tensors, an assumption"
    elif os.environ.get(MMAP_THRESHOLD):
        share, note = PINNED_SHARE, f"{PINNED_SHARE:.0%} of the tensors, as {MMAP_THRESHOLD} is set"
    else:
        share, note = GLIBC_SHARE, f"glibc: up to 70 % of the tensors; {MMAP_THRESHOLD}=1048576 avoids it"
    return Part("allocator", int(share * peak), note=note, estimated=True)


def host_bytes(config: TrainConfig, shape: ModelShape) -> int:
    """Bytes of the CPU's memory that `offload` needs: for each parameter two moments, a float32 copy and a float32
    gradient, and the reference model in 16 bits."""
    rank, own = config.lora.rank, needs_critic(config) and config.critic.backbone == "own"
    trained = shape.adapter_parameters(rank, config.lora.head) if rank else shape.num_parameters
    states = 4 * FLOAT32 * trained * (1 + own) if config.offload.optimizer else 0
    return states + (2 * shape.num_parameters if config.offload.reference and not rank else 0)


def _optimizer(parameters: int, largest: int, b: int, name: str, offloaded: bool) -> list[Part]:
    """Gradients, AdamW's states, and what its step holds for a moment (`learner.optim.MasterAdamW`)."""
    if offloaded:
        # A parameter's update is copied in float32 and rounded on the device.
        note = "states: --offload.optimizer"
        return [
            Part(f"{name}gradients", parameters * b, (UPDATE, OPTIMIZER)),
            Part(f"{name}temporaries of AdamW", largest * FLOAT32, (OPTIMIZER,), note),
        ]
    masters = [Part(f"{name}master weights", FLOAT32 * parameters, note="float32")] if b != FLOAT32 else []
    # 16-bit gradients give way to float32 copies. Parameters are updated one after another, in two temporaries.
    step = ((parameters if b != FLOAT32 else 0) + 2 * largest) * FLOAT32
    gradients_in = (UPDATE,) if b != FLOAT32 else (UPDATE, OPTIMIZER)
    words = "gradients in float32, square roots" if b != FLOAT32 else "square roots"
    return [
        *masters,
        Part(f"{name}optimizer states", 2 * FLOAT32 * parameters, note="two moments, float32"),
        Part(f"{name}gradients", parameters * b, gradients_in),
        Part(f"{name}temporaries of AdamW", step, (OPTIMIZER,), words),
    ]


def micro_batch_tokens(config: TrainConfig, work: Workload) -> int:
    """Tokens of the largest micro-batch of an update: `token_budget`, less where an optimizer step has fewer tokens,
    more where a single sequence is longer."""
    a, sequences = config.algo, max(1, work.trained // max(1, work.sequence))
    steps = a.minibatches if a.minibatch_size is None else -(-sequences // a.minibatch_size)
    return max(min(config.token_budget, work.trained // max(1, min(steps, sequences))), work.longest)


def _passes(
    config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload, b: int, shards: int
) -> list[Part]:
    """Activations, logits and temporaries of the passes over packed tokens.

    Update: T `update_bytes`, the LM head's gradient in float32 (4 V H; none with LoRA), and the largest of what is held
    in turn: a chunk of logits with the rows' states and their gradients (chunk + 2 N H b); a layer's backward (T
    `backward_bytes`). Token statistics: T `forward_bytes` + N H b, and two chunks of logits.
    """
    tokens, joined = micro_batch_tokens(config, work), machine.kind == "cpu"
    rows = max(1, min(tokens, -(-work.rows * tokens // max(1, work.trained))))
    checkpointing = config.model.gradient_checkpointing
    kept = tokens * update_bytes(shape, b, checkpointing, joined, config.lora.rank)
    row_bytes = shape.vocab * b
    logits = min(rows * row_bytes, max(row_bytes, config.logits_budget_mb * MIB))
    in_head = logits + 2 * rows * shape.hidden * b
    if checkpointing:  # the recomputed layer does not exist yet while the head runs
        in_head -= tokens * layer_bytes(shape, b, joined, config.lora.rank)
    in_layers = tokens * backward_bytes(shape, b) + (shape.layer_parameters * b if shards > 1 else 0)
    # At the end the activations are free, and the embedding's gradient is added to the head's.
    head_gradient = 0 if config.lora.rank else shape.head_parameters
    at_the_end = head_gradient * b + tokens * shape.hidden * b - kept
    phrase = f"{tokens} tokens x {kept / tokens / 1024:.0f} KiB" + (", checkpointed" if checkpointing else "")
    scored = max(min(config.token_budget, work.trained // config.rollout.groups), work.longest)
    forward = scored * forward_bytes(shape, b) + min(rows, scored) * shape.hidden * b
    return [
        Part("activations", kept, (UPDATE,), phrase),
        Part("gradient of the LM head", head_gradient * FLOAT32, (UPDATE,), "float32"),
        Part("logits chunk, temporaries", max(0, in_head, in_layers, at_the_end), (UPDATE,),
             f"{logits / MIB:.0f} MiB of logits"),
        Part("forward pass", forward, (STATISTICS,)),
        Part("logits chunks", 2 * logits, (STATISTICS,), "two"),
    ]  # fmt: skip


def vllm_shares_device(config: TrainConfig, machine: Machine) -> bool:
    """Whether vLLM takes a share of the trainer's GPU."""
    return rollouts_share_device(config) and config.rollout.engine == "vllm" and machine.kind == "cuda"


def _rollouts(config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload, b: int) -> list[Part]:
    """What rollouts hold on the trainer's device: vLLM's share, or weights and cache of the transformers engine.

    Cache: slots x `slot_tokens` x 2 L Hk D b. Sampling: slots x V (b + 36): logits, in float32, divided and as
    log-probs, and three times in float64.
    """
    r, parts = config.rollout, []
    copies = r.replicas if r.placement == "process" else 1
    if vllm_shares_device(config, machine):
        share = r.memory_share or VLLM_SHARE
        return [Part("vLLM", int(copies * share * machine.card.memory), note=f"--rollout.memory-share {share:g}")]
    if r.placement == "process":
        each = PROCESS_BYTES[machine.kind] + shape.num_parameters * b
        parts.append(Part("workers: process, weights", copies * each, note=f"{copies} replicas"))
    tokens = slot_tokens(config, work)
    cache = copies * r.slots * tokens * cache_bytes(shape, b)
    parts.append(Part("keys and values", cache, note=f"{copies * r.slots} slots x {tokens} tokens"))
    sampling = r.slots * shape.vocab * (b + 3 * FLOAT32 + 3 * 8)
    passing = min(PREFILL_TOKENS, r.slots * work.longest) * forward_bytes(shape, b)
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
    name, memory = f"rollouts: {machine.card.name}", machine.card.memory
    if r.engine != "vllm":
        inline = replace(config, rollout=replace(r, placement="inline", replicas=1, gpus=""))
        parts = [Part("CUDA context", PROCESS_BYTES["cuda"], (ROLLOUT,)), weights]
        return Prediction(name, memory, (*parts, *_rollouts(inline, shape, machine, work, b)))
    cache = vllm_cache(config, shape, work, b) // r.tensor_parallel
    parts = [
        weights, Part("vLLM: activations, graphs", VLLM_OVERHEAD, (ROLLOUT,)),
        Part("keys and values", cache, (ROLLOUT,), "least"),
    ]  # fmt: skip
    return Prediction(name, int((r.memory_share or 0.9) * memory), tuple(parts))


def vllm_cache(config: TrainConfig, shape: ModelShape, work: Workload, b: int) -> int:
    """Least bytes of vLLM's cache: one sequence of the greatest length, which vLLM insists on, and eight typical ones,
    below which it generates few at a time."""
    limit = min(config.rollout.max_sequence_tokens, shape.max_positions or config.rollout.max_sequence_tokens)
    return max(limit, 8 * work.sequence) * cache_bytes(shape, b)


def vllm_least(config: TrainConfig, shape: ModelShape, work: Workload, b: int) -> int:
    """Least bytes with which vLLM can generate on one GPU."""
    return (
        shape.num_parameters * b + vllm_cache(config, shape, work, b)
    ) // config.rollout.tensor_parallel + VLLM_OVERHEAD
