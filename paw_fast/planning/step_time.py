"""Estimates the time of a training step from counted operations and bytes: rough, to see what takes long.

Rollouts: prompts at the rate of operations, then one pass for each token of the episodes in flight, bound by reading
the weights and the cache. Token statistics and update: operations. Letters as in `shapes`; efficiencies are assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from paw_fast.config import TrainConfig
from paw_fast.planning.activations import cache_bytes
from paw_fast.planning.machine import Machine
from paw_fast.planning.memory import element_size, needs_critic, rollouts_share_device
from paw_fast.planning.shapes import ModelShape
from paw_fast.planning.workload import Workload

FLOPS_SHARE = 0.4
"""Assumption: share of a device's operations a second that the passes reach."""
READ_SHARE = 0.6
"""Assumption: share of its read rate that decoding reaches."""
LAYER_S = {("cuda", "vllm"): 1e-4, ("cuda", "transformers"): 1e-3, ("cpu", "transformers"): 1e-3, ("cpu", "vllm"): 1e-3}
"""Assumption: least seconds of a layer in a decoding pass: launches of kernels (with CUDA graphs in vLLM)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a training step. Produced by `estimate_time`."""

    rollout: float
    statistics: float
    update: float

    @property
    def total(self) -> float:
        return self.rollout + self.statistics + self.update


def forward_flops(shape: ModelShape, context: float) -> float:
    """Operations of a token in the layers, forward: 2 for each weight, and 4 Hq D for each token that attention reads,
    which are half of the sequence on average.

    >>> shape = ModelShape("m", "llama", hidden=8, layers=1, heads=2, kv_heads=1, head_size=4, ffn=16, vocab=10)
    >>> forward_flops(shape, context=100)
    2752.0
    """
    matrices = shape.layer_parameters - 2 * shape.hidden
    return shape.layers * (2 * matrices + 4 * shape.heads * shape.head_size * context / 2)


def estimate_time(config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload) -> StepTime | None:
    """The time of a step without evaluation and checkpoints; None for cards whose rates are not known."""
    card = machine.card
    if card.flops is None or card.read_rate is None:
        return None
    rate, reads = FLOPS_SHARE * card.flops, READ_SHARE * card.read_rate
    layers, head = forward_flops(shape, work.sequence), 2 * shape.head_parameters
    own_critic = needs_critic(config) and config.critic.backbone == "own"
    scored = work.trained * layers + work.sampled * head
    statistics = scored * (1 + (config.algo.kl_coef > 0)) + own_critic * work.trained * layers
    # Forward, backward (as many for the inputs, and for the weights where they are trained), recomputation.
    passes = 2 + (not config.lora.rank) + config.model.gradient_checkpointing
    in_head = 2 + (not config.lora.rank)
    update = config.algo.epochs * (work.trained * layers * passes * (1 + own_critic) + work.rows * head * in_head)
    return StepTime(_rollout(config, shape, machine, work, rate, reads), statistics / rate, update / rate)


def _rollout(
    config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload, rate: float, reads: float
) -> float:
    """Seconds of the rollouts of a step."""
    r = config.rollout
    b = element_size(config, machine.kind)
    devices = 1 if rollouts_share_device(config) else r.replicas * r.tensor_parallel
    replicas = 1 if rollouts_share_device(config) else r.replicas
    turn = work.lengths.action + work.lengths.observation
    # In `trajectory` a prompt continues the previous one, whose keys and values are kept.
    prompts = (
        work.lengths.prompt + work.turns * turn if config.layout == "trajectory" else work.turns * work.lengths.prompt
    )
    prefill = work.episodes * prompts * forward_flops(shape, work.sequence) / (rate * devices)
    in_flight = max(1.0, min(r.slots, work.episodes / replicas))
    passes = work.sampled / replicas / in_flight
    read = shape.num_parameters * b + in_flight * work.sequence * cache_bytes(shape, b)
    computed = in_flight * (forward_flops(shape, work.sequence) + 2 * shape.head_parameters) / rate
    each = max(read / reads, computed) / r.tensor_parallel + shape.layers * LAYER_S[machine.kind, r.engine]
    return prefill + passes * each
