"""Implements AdamW with float32 copies of low-precision weights.

At typical learning rates (1e-6), an update of a bfloat16 weight is smaller than half the distance to the next
bfloat16 number, so it would be lost in rounding. Updates are applied to the copies, and the weights are rounded from
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from paw_fast.config import OptimConfig


class MasterAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` on float32 master copies of the parameters that are not float32, and on the others directly.

    groups: parameter groups as AdamW takes them; keywords as AdamW. Gradients are read from the parameters given, and
    `trained` lists these. Needs 16 bytes for each bfloat16 parameter: weight and gradient 2 each, master 4, moments 8.
    A step replaces the gradients by float32 copies, 2 bytes more, and frees them. Unlike AdamW's default on CUDA, it
    updates one parameter after another (`foreach=False`): the square roots of all moments at once would need another 4.

    offload: keep copies of all parameters, and the moments, in the CPU's memory, and compute the steps there (torch's
    fused AdamW). The device then holds weights and gradients alone: 4 bytes for each bfloat16 parameter.

    >>> weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    >>> optimizer = MasterAdamW([{"params": [weight]}], lr=1e-3, weight_decay=0.0)
    >>> for _ in range(5):
    ...     weight.grad = torch.ones_like(weight)
    ...     optimizer.step()
    >>> weight.item()
    0.99609375
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, offload: bool = False, **settings: Any):
        self.offload = offload
        self.trained: list[Tensor] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []
        own = []
        for group in groups:
            parameters = list(group["params"])
            self.trained += parameters
            own.append({**group, "params": [self._master(p) for p in parameters]})
        self._how = {"fused": True, "foreach": None} if offload else {"foreach": False, "fused": None}
        super().__init__(own, **{**self._how, **settings})

    def _master(self, parameter: Tensor) -> Tensor:
        if parameter.dtype == torch.float32 and not self.offload:
            return parameter
        place = torch.device("cpu") if self.offload else parameter.device
        master = parameter.detach().to(place, torch.float32, copy=True).requires_grad_()
        self._pairs.append((parameter, master))
        return master

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for parameter, master in self._pairs:
            master.grad = None if parameter.grad is None else parameter.grad.to(master.device, torch.float32)
            parameter.grad = None
        loss = super().step(closure)
        for parameter, master in self._pairs:
            parameter.copy_(master)
            master.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for parameter, _ in self._pairs:
            parameter.grad = None

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scales the gradients to a global norm of at most `max_norm`; returns the previous norm, a float32 scalar."""
        return torch.nn.utils.clip_grad_norm_(self.trained, max_norm).float()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masters": [master.detach() for _, master in self._pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state and the master copies. Raises `ValueError` if their number differs.

        A state that was saved with another `offload` is taken too: copies of float32 weights equal the weights.
        """
        state = dict(state_dict)
        masters = state.pop("masters", [])
        if bool(masters) != bool(self._pairs) and all(p.dtype == torch.float32 for p in self.trained):
            masters = [p.detach() for p, _ in self._pairs]
        if len(masters) != len(self._pairs):
            raise ValueError(f"{len(masters)} float32 copies were saved, this run has {len(self._pairs)}")
        super().load_state_dict(state)
        for group in self.param_groups:
            group |= self._how
        with torch.no_grad():
            for (_, master), saved in zip(self._pairs, masters, strict=True):
                master.copy_(saved)


def trained_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters of a model that require a gradient: all of them, or its adapters'."""
    return [p for p in model.parameters() if p.requires_grad]


def make_optimizer(
    groups: Sequence[dict[str, Any]], learning_rate: float, o: OptimConfig, offload: bool
) -> MasterAdamW:
    """The optimizer of a run for parameter groups. offload: `offload.optimizer`, without effect on the CPU."""
    offload = offload and any(p.is_cuda for group in groups for p in group["params"])
    betas = (o.beta1, o.beta2)
    return MasterAdamW(groups, offload=offload, lr=learning_rate, betas=betas, weight_decay=o.weight_decay)
