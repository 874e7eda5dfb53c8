"""Splits a policy among ranks with FSDP2: `fully_shard` for each decoder layer, the embedding, the head and the rest.

Weights are kept as float32 shards, in place of `MasterAdamW`'s copies. A layer's weights are gathered, in the dtype in
which the model computes, when it runs, and freed after it; gradients are reduced in float32 to their shards.

The fused loss reads the head's weight, so it runs inside the head's forward hooks, which gather that weight and reduce
its gradient. Where head and embedding are tied, the one weight belongs to the root, which is gathered during a whole
micro-batch: it is needed by the first layer and by the last.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from paw_fast.errors import UserError
from paw_fast.models.policy import Policy, Result


class _Root(torch.nn.Module):
    """The module of everything that is sharded together. Its forward runs any computation with its modules, so that
    FSDP sees one forward for each backward."""

    def __init__(self, model: torch.nn.Module, heads: Sequence[torch.nn.Module]):
        super().__init__()
        self.model, self.heads = model, torch.nn.ModuleList(heads)

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


@dataclass
class ShardedPolicy(Policy):
    """A policy whose parameters are shards. Every rank must call the same methods in the same order.

    compute_dtype: in which the model computes.
    """

    root: Any = None
    compute_dtype: torch.dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        return self.compute_dtype

    def run(self, compute: Callable[[], Result]) -> Result:
        out = self.root(compute)
        if not torch.is_grad_enabled():  # with gradients, the backward does it
            self.root.reshard()
        return out

    def with_head(self, compute: Callable[[Any, Tensor], Result], hidden: Tensor) -> Result:
        head: Any = self.lm_head
        tied = not isinstance(self.lm_head, FSDPModule)  # then its weight is the root's
        return compute(_plain(head), hidden) if tied else head.run_sharded(compute, hidden)  # pyright: ignore

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Gathers the weights one after another, in the dtype of the model, by their names in a checkpoint; tied ones
        once. Every rank must take all of them."""
        self.root.reshard()
        for name, parameter in self.model.named_parameters():
            yield name, whole_tensor(parameter.detach().to(self.compute_dtype))
        persistent = self.model.state_dict().keys()
        yield from ((name, buffer) for name, buffer in self.model.named_buffers() if name in persistent)


def whole_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_policy(
    policy: Policy, heads: Sequence[torch.nn.Module], mesh: DeviceMesh, trained: bool = True
) -> ShardedPolicy:
    """Splits the policy's model, in place, and float32 modules that read its hidden states.

    trained: False keeps the dtype of the weights, for a reference model. Raises `UserError` for a model whose layers or
    head cannot be sharded, and for one that is trained in parts.
    """
    model, dtype = policy.model, policy.model.dtype
    head, embedding, layers = model.get_output_embeddings(), model.get_input_embeddings(), _layers(model)
    if type(head) is not torch.nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        raise UserError(
            f"--trainer.gpus: the LM head of this model is a {type(head).__name__}, and only a plain linear one can be "
            "sharded: train on one GPU"
        )
    if trained and not all(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "--trainer.gpus: a model of which only some parameters are trained (LoRA) cannot be sharded yet: train on "
            "one GPU"
        )
    precision = MixedPrecisionPolicy(
        param_dtype=dtype if trained and dtype != torch.float32 else None,
        reduce_dtype=torch.float32 if trained else None,
    )
    tied = head.weight is embedding.weight
    for module in [*layers, *([] if tied else [embedding, head])]:
        if trained:
            module.float()
        fully_shard(module, mesh=mesh, mp_policy=precision)
    if not tied:
        object.__setattr__(head, "run_sharded", types.MethodType(_run_sharded, head))
        register_fsdp_forward_method(head, "run_sharded")
    for module in heads:
        fully_shard(module, mesh=mesh)  # value heads compute in float32
    root = _Root(model, heads)
    if trained:
        root.float()
    fully_shard(root, mesh=mesh, mp_policy=precision)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # The losses' weights hold the denominators of the whole batch: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale in the reduction
    return ShardedPolicy(model, policy.tokenizer, root=root, compute_dtype=dtype)


def _layers(model: Any) -> list[torch.nn.Module]:
    """The decoder layers: the longest list of equal modules. Raises `UserError` where there is none."""
    lists = [module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    if not lists:
        raise UserError(
            f"--trainer.gpus: no list of layers is found in {type(model).__name__}, so it cannot be sharded: train on "
            "one GPU"
        )
    return list(max(lists, key=len))


def _run_sharded(head: Any, compute: Callable[[Any, Tensor], Result], hidden: Tensor) -> Result:
    return compute(_plain(head), hidden)


def _plain(head: Any) -> torch.nn.Linear:
    """A linear layer without FSDP's hooks that has the weight of `head`, whole inside its forward."""
    plain = torch.nn.Linear(1, 1, bias=False, device="meta")
    plain.weight, plain.bias = head.weight, head.bias
    return plain
