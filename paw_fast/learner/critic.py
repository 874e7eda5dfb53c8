"""Implements the critic: a value head on its own copy of the policy, one on the policy's hidden states, or none.

N action tokens, H hidden size. A value is that of the state before its token: it reads the hidden state that predicts
the token.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from paw_fast.algorithms.base import algorithm_class
from paw_fast.config import CriticConfig, OptimConfig, TrainConfig
from paw_fast.learner.forward_backward import row_hidden
from paw_fast.learner.optim import MasterAdamW, make_optimizer, trained_parameters
from paw_fast.learner.packing import PackedBatch
from paw_fast.learner.update_metrics import UpdateMetrics
from paw_fast.models.policy import Policy
from paw_fast.runs.checkpoint import restore_optimizer

Values = Callable[[Tensor], Tensor]
"""Maps hidden states [N, H] to values [N]."""
Step = Callable[[], tuple[float, bool]]
"""A step of the policy's optimizer: gives the gradient's norm and whether the step was taken."""

Accumulate = Callable[[Callable[[], None]], None]
"""Calls a function that accumulates gradients, from the beginning again where memory runs out."""


def value_loss(
    values: Tensor, old_values: Tensor, targets: Tensor, weights: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Computes PPO's clipped value loss (arXiv 1707.06347, as in OpenAI's baselines and verl), and where it is clipped.

    values, old_values, targets, weights [N] -> scalar sum(w * 0.5 * max((v - R)^2, (clip(v, old +- c) - R)^2)) and
    [N] bool, True where the clipped branch is larger (its gradient is zero there). `clip=None` is 0.5 * (v - R)^2.

    >>> value_loss(torch.tensor([2.0]), torch.zeros(1), torch.tensor([3.0]), torch.ones(1), 0.5)
    (tensor(3.1250), tensor([True]))
    """
    squared = (values - targets) ** 2
    if clip is None:
        return 0.5 * (weights * squared).sum(), torch.zeros_like(values, dtype=torch.bool)
    near = old_values + (values - old_values).clamp(-clip, clip)
    bounded = (near - targets) ** 2
    return 0.5 * (weights * torch.maximum(squared, bounded)).sum(), bounded > squared


class NoCritic:
    """No value function. Also defines the interface of the other two classes."""

    needed = False
    has_own_pass = False
    """Whether `separate_values` gives the values: from a pass of the critic's own."""
    warmup_steps = 0
    """First training steps in which the policy does not learn."""

    def own_optimizers(self) -> list[MasterAdamW]:
        """The critic's own optimizer; empty if its parameters belong to the policy's."""
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the policy's optimizer."""
        return []

    def shared_values(self) -> Values | None:
        """Maps hidden states of the policy to values; None if the critic does not use them."""
        return None

    def separate_values(self, batch: PackedBatch) -> Tensor:
        """Computes the values [N] of a micro-batch's rows with a separate forward pass."""
        raise NotImplementedError

    def loss_in_policy_update(self, batch: PackedBatch, metrics: UpdateMetrics) -> Values | None:
        """Maps hidden states [N, H] of the rows to the value loss that is added to the policy loss; None for none."""
        return None

    def update(
        self, policy: Policy, batches: Callable[[], Iterator[PackedBatch]], metrics: UpdateMetrics, warming_up: bool,
        step: Step, accumulate: Accumulate,
    ) -> None:  # fmt: skip
        """Updates the critic on an optimizer batch, apart from the policy's update.

        batches: the micro-batches of the optimizer batch; their policy rows have value targets. warming_up: whether the
        policy is not updated in this training step. step: takes a step of the policy's optimizer. accumulate: calls the
        function that accumulates the gradients.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for `load_state_dict`, as tensors and plain values."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state. Raises `ValueError` if it was saved with another kind of backbone."""
        raise NotImplementedError


class SharedCritic(NoCritic):
    """A value head on the hidden states of the policy. Its parameters belong to the policy's optimizer."""

    needed = True

    def __init__(self, policy: Policy, config: CriticConfig):
        self.config, self.warmup_steps = config, config.warmup_steps
        self.head = _new_head(policy)

    def values(self, hidden: Tensor) -> Tensor:
        """Computes values [N] float32 from hidden states [N, H]."""
        return self.head(hidden.float())[:, 0]

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.head.parameters()), "lr": self.config.learning_rate}]

    def shared_values(self) -> Values | None:
        return self.values

    def loss_in_policy_update(self, batch: PackedBatch, metrics: UpdateMetrics) -> Values | None:
        return lambda hidden: self._loss(hidden, batch, metrics, self.config.coef)

    def update(
        self, policy: Policy, batches: Callable[[], Iterator[PackedBatch]], metrics: UpdateMetrics, warming_up: bool,
        step: Step, accumulate: Accumulate,
    ) -> None:  # fmt: skip
        """Updates the head during the warm-up. Later the loss is part of the policy's update."""
        if not warming_up:
            return

        def add_gradients() -> None:
            for batch in batches():
                with torch.no_grad():
                    hidden = row_hidden(policy, batch)
                self._loss(hidden, batch, metrics, 1.0).backward()

        accumulate(add_gradients)
        # The policy's parameters have no gradient here, and AdamW leaves such parameters alone.
        norm, stepped = step()
        metrics.count_step(stepped)
        metrics.critic_norms.append(norm)

    def _loss(self, hidden: Tensor, batch: PackedBatch, metrics: UpdateMetrics, coef: float) -> Tensor:
        return _weighted_loss(self.values, hidden, batch, metrics, coef, self.config.value_clip)

    def state_dict(self) -> dict[str, Any]:
        return {"head": self.head.state_dict(), "backbone": None, "optimizer": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["backbone"] is not None:
            raise ValueError("the critic was saved with another --critic.backbone")
        self.head.load_state_dict(state["head"])


class SeparateCritic(NoCritic):
    """A value head on a separate copy of the policy, with its own optimizer.

    Of a policy with adapters the adapters alone are copied and trained; the copies share the frozen weights.
    """

    needed = True
    has_own_pass = True

    def __init__(self, policy: Policy, config: CriticConfig, optim: OptimConfig, offload: bool = False):
        self.config, self.warmup_steps, self.max_grad_norm = config, config.warmup_steps, optim.max_grad_norm
        self.head = _new_head(policy)
        frozen = {id(p): p for p in policy.model.parameters() if not p.requires_grad}
        self.backbone = Policy(copy.deepcopy(policy.model, frozen), policy.tokenizer)
        parameters = [*trained_parameters(self.backbone.model.base_model), *self.head.parameters()]
        self.optimizer = make_optimizer([{"params": parameters}], config.learning_rate, optim, offload)

    def own_optimizers(self) -> list[MasterAdamW]:
        return [self.optimizer]

    def values(self, hidden: Tensor) -> Tensor:
        """Computes values [N] float32 from hidden states [N, H] of the backbone."""
        return self.head(hidden.float())[:, 0]

    def separate_values(self, batch: PackedBatch) -> Tensor:
        return self.values(row_hidden(self.backbone, batch))

    def update(
        self, policy: Policy, batches: Callable[[], Iterator[PackedBatch]], metrics: UpdateMetrics, warming_up: bool,
        step: Step, accumulate: Accumulate,
    ) -> None:  # fmt: skip
        """Takes a step of the critic's own optimizer, during the warm-up and after it."""

        def add_gradients() -> None:
            for batch in batches():
                hidden = row_hidden(self.backbone, batch)
                _weighted_loss(self.values, hidden, batch, metrics, 1.0, self.config.value_clip).backward()

        accumulate(add_gradients)
        norm = self.step()
        metrics.count_step(math.isfinite(norm))
        metrics.critic_norms.append(norm)

    def step(self) -> float:
        """One step of the critic's optimizer, left out where the gradient is not finite; returns the gradient's
        norm."""
        norm = self.optimizer.clip_gradients(self.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        return {
            "head": self.head.state_dict(), "backbone": self._backbone_state(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def _backbone_state(self) -> dict[str, Tensor]:
        """The backbone's weights; of a backbone with adapters, these alone."""
        backbone = self.backbone.model.base_model
        frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
        return {name: tensor for name, tensor in backbone.state_dict().items() if name not in frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["backbone"] is None:
            raise ValueError("the critic was saved with another --critic.backbone")
        self.head.load_state_dict(state["head"])
        if state["backbone"].keys() != self._backbone_state().keys():
            raise ValueError("the critic was saved with other parameters")
        self.backbone.model.base_model.load_state_dict(state["backbone"], strict=False)
        restore_optimizer(self.optimizer, state["optimizer"])


def make_critic(policy: Policy, config: TrainConfig) -> NoCritic:
    """Creates the critic that the algorithm of the config needs."""
    if not algorithm_class(config.algo.name).needs_critic:
        return NoCritic()
    if config.critic.backbone == "shared":
        return SharedCritic(policy, config.critic)
    return SeparateCritic(policy, config.critic, config.optim, config.offload.optimizer)


def _new_head(policy: Policy) -> torch.nn.Linear:
    """Creates a linear map from hidden states to values, initialised to zero."""
    head = torch.nn.Linear(policy.lm_head.weight.shape[1], 1, device=policy.device, dtype=torch.float32)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head


def _weighted_loss(
    values_of: Values, hidden: Tensor, batch: PackedBatch, metrics: UpdateMetrics, coef: float, clip: float | None
) -> Tensor:
    """The summed value loss times `coef` on the policy rows of a micro-batch; hidden [N, H] are the rows' states."""
    rows = batch.value_rows()
    values = values_of(hidden[rows.index])
    loss, clipped = value_loss(values, rows.old_values, rows.targets, coef * rows.weights, clip)
    metrics.add_values(values.detach(), rows.targets, clipped, float(loss.detach()) / coef)
    return loss
