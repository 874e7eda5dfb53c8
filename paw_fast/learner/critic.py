"""PPO's value function: a head on its own copy of the policy, or on the policy's own hidden states.

N action tokens, H hidden size. A value is that of the state before its token: it reads the hidden state that
predicts the token.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from paw_fast.config import CriticConfig, OptimConfig
from paw_fast.learner.optim import MasterAdamW
from paw_fast.models.policy import Policy
from paw_fast.runs.checkpoint import restore_optimizer


def value_loss(
    values: Tensor, old_values: Tensor, targets: Tensor, weights: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """PPO's clipped value loss (arXiv 1707.06347 in the form of the OpenAI baselines, as in verl), and what it clips.

    values, old_values, targets, weights [N] -> scalar sum(w * 0.5 * max((v - R)^2, (clip(v, old +- c) - R)^2)) and
    [N] bool, where the clipped branch is the larger one (it has no gradient there). `clip=None` is 0.5 * (v - R)^2.

    >>> value_loss(torch.tensor([2.0]), torch.zeros(1), torch.tensor([3.0]), torch.ones(1), 0.5)
    (tensor(3.1250), tensor([True]))
    """
    squared = (values - targets) ** 2
    if clip is None:
        return 0.5 * (weights * squared).sum(), torch.zeros_like(values, dtype=torch.bool)
    near = old_values + (values - old_values).clamp(-clip, clip)
    bounded = (near - targets) ** 2
    return 0.5 * (weights * torch.maximum(squared, bounded)).sum(), bounded > squared


class Critic:
    """The value function and, on a backbone of its own, its optimizer.

    `policy` is what a backbone of its own is copied from. On a shared backbone the head's parameters belong into the
    policy's optimizer, in a group of their own (`parameter_groups`).
    """

    def __init__(self, policy: Policy, config: CriticConfig, optim: OptimConfig):
        self.config, self.optim = config, optim
        self.head = torch.nn.Linear(policy.lm_head.weight.shape[1], 1, device=policy.device, dtype=torch.float32)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.backbone: Policy | None = None
        self.optimizer: MasterAdamW | None = None
        if config.backbone == "own":
            self.backbone = Policy(copy.deepcopy(policy.model), policy.tokenizer)
            parameters = [*self.backbone.model.base_model.parameters(), *self.head.parameters()]
            self.optimizer = MasterAdamW(
                [{"params": parameters}], lr=config.learning_rate, betas=(optim.beta1, optim.beta2),
                weight_decay=optim.weight_decay,
            )  # fmt: skip

    def values(self, hidden: Tensor) -> Tensor:
        """Values [N] float32 of hidden states [N, H]."""
        return self.head(hidden.float())[:, 0]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the policy's optimizer: the head's on a shared backbone, else none."""
        if self.backbone is not None:
            return []
        return [{"params": list(self.head.parameters()), "lr": self.config.learning_rate}]

    def step(self) -> float:
        """One step of the critic's own optimizer; returns the gradient's norm. Leaves out a step that is not finite."""
        assert self.optimizer is not None
        norm = self.optimizer.clip_gradients(self.optim.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on from here, as tensors and plain values."""
        return {
            "head": self.head.state_dict(),
            "backbone": None if self.backbone is None else self.backbone.model.base_model.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave. Raises `ValueError` when it was saved with another kind of backbone."""
        if (state["backbone"] is None) != (self.backbone is None):
            raise ValueError("the critic was saved with another --critic.backbone")
        self.head.load_state_dict(state["head"])
        if self.backbone is not None and self.optimizer is not None:
            self.backbone.model.base_model.load_state_dict(state["backbone"])
            restore_optimizer(self.optimizer, state["optimizer"])
