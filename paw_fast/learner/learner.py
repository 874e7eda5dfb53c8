"""TokenStats a step's rollouts and updates the policy with them.

    trajectories -> sequences -> score: old and reference log-probs, values, action entropies
                        |              |
                        |     credit, selected transitions, lambda
                        v              v
                    row tables -> packed micro-batches -> fused loss -> optimizer

B trajectories, M transitions, S sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from paw_fast.algorithms.base import Credit, assign_credit
from paw_fast.algorithms.world_model import first_of_equals, group_lambdas, select_transitions
from paw_fast.config import OptimConfig, TrainConfig
from paw_fast.kernels import LossSettings
from paw_fast.learner import packing
from paw_fast.learner.critic import Critic, value_loss
from paw_fast.learner.forward_backward import backward, compute_token_stats, rows_per_chunk
from paw_fast.learner.loss_rows import WorldModelWeights, build_tables, longest_action
from paw_fast.learner.optim import MasterAdamW
from paw_fast.learner.packing import PackedBatch, RowTable
from paw_fast.learner.seen_passages import SeenPassages, shown_passages
from paw_fast.learner.update_metrics import UpdateMetrics
from paw_fast.models.policy import Policy
from paw_fast.types import TokenSequence, TokenStats, Trajectory


class Learner:
    """Owns the optimizer and the critic. `reference` is the frozen policy of the KL term, None where there is none."""

    def __init__(self, policy: Policy, reference: Policy | None, config: TrainConfig):
        self.policy, self.reference, self.config = policy, reference, config
        o, a = config.optim, config.algo
        self.critic = Critic(policy, config.critic, o) if a.name == "ppo" else None
        groups = [{"params": list(policy.model.parameters())}, *(self.critic.parameter_groups() if self.critic else [])]
        self.optimizer = MasterAdamW(groups, lr=o.learning_rate, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay)

        # Of training steps, whose number of optimizer steps may vary; those of the critic's warm-up do not count. A
        # critic's learning rate is constant, on either backbone.
        steps = config.steps - (config.critic.warmup_steps if self.critic else 0)
        factors = [lambda step: learning_rate_factor(step, o, steps), *[lambda step: 1.0] * (len(groups) - 1)]
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factors)
        self.passages = SeenPassages()
        self.optimizer_steps = 0
        """Those of the last update, left out ones included."""
        self.chunk = rows_per_chunk(policy, config.logits_budget_mb << 20)
        self.settings = LossSettings(
            clip_low=a.clip_low, clip_high=a.clip_high, dual_clip=a.dual_clip,
            kl_coef=a.kl_coef if a.kl_in == "loss" else 0.0, entropy_coef=a.entropy_coef, wm_loss=config.paw.loss,
            kl_clamp=a.kl_clamp, tau=config.paw.tau, temperature=config.rollout.temperature,
        )  # fmt: skip

    def apply_settings(self) -> None:
        """Puts the config's optimizer settings over those that a checkpoint has restored."""
        o = self.config.optim
        rates = [o.learning_rate] + [self.config.critic.learning_rate] * (len(self.optimizer.param_groups) - 1)
        self.scheduler.base_lrs = list(rates)
        for group, rate, factor in zip(self.optimizer.param_groups, rates, self.scheduler.lr_lambdas, strict=True):
            group |= {"initial_lr": rate, "lr": rate * factor(self.scheduler.last_epoch)}
            group |= {"betas": (o.beta1, o.beta2), "weight_decay": o.weight_decay}
        self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if self.critic is not None and self.critic.optimizer is not None:
            for group in self.critic.optimizer.param_groups:
                group |= {"lr": self.config.critic.learning_rate}
                group |= {"betas": (o.beta1, o.beta2), "weight_decay": o.weight_decay}

    # ------------------------------------------------------------------------------------------------ scoring

    def compute_token_stats(self, sequences: Sequence[TokenSequence]) -> TokenStats:
        """One pass of the policy and, where they are wanted, of reference and critic; only action tokens are scored.

        The sequences' transitions may be those of a part of the batch: `TokenStats.join` puts parts together.
        """
        shared = self.critic if self.critic is not None and self.critic.backbone is None else None
        old, entropies, values = self._score_with(self.policy, sequences, shared)
        ref = self._score_with(self.reference, sequences, None)[0] if self.reference is not None else None
        if self.critic is not None and self.critic.backbone is not None:
            values = self._values_of_own(self.critic, sequences)
        return TokenStats(old, ref, values, np.array([float(e.mean()) for e in entropies]))

    def _batches(self, sequences: Sequence[TokenSequence]) -> Iterator[PackedBatch]:
        tables = [packing.action_rows(s) for s in sequences]
        lengths = [packing.input_length(t) for t in tables]
        for members in packing.plan_micro_batches(lengths, self.config.token_budget):
            yield packing.pack(sequences, tables, members, self.policy.device)

    def _score_with(self, policy: Policy, sequences: Sequence[TokenSequence], critic: Critic | None):
        """Log-probs, entropies and (with a shared critic) values, an array for each transition."""
        columns: list[dict[int, np.ndarray]] = [{}, {}, {}]
        for batch in self._batches(sequences):
            got = compute_token_stats(
                policy, batch, self.config.rollout.temperature, self.chunk, critic.values if critic else None
            )
            for column, flat in zip(columns, got, strict=True):
                if flat is not None:
                    _scatter(column, flat.numpy(), batch, sequences)
        logprobs, entropies, values = ([column[m] for m in sorted(column)] for column in columns)
        return logprobs, entropies, values if critic else None

    @torch.no_grad()
    def _values_of_own(self, critic: Critic, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        assert critic.backbone is not None
        values: dict[int, np.ndarray] = {}
        for batch in self._batches(sequences):
            hidden = critic.backbone.hidden(batch.input_ids, batch.position_ids, batch.lengths)[batch.row_tokens]
            _scatter(values, critic.values(hidden).cpu().numpy(), batch, sequences)
        return [values[m] for m in sorted(values)]

    # ------------------------------------------------------------------------------------------------ updating

    def update(
        self, trajectories: Sequence[Trajectory], sequences: Sequence[TokenSequence], scores: TokenStats, step: int
    ) -> dict[str, float]:
        """The optimizer steps of one rollout batch; returns its metrics."""
        c = self.config
        credit = assign_credit(trajectories, scores, c.algo, c.critic)
        lambdas, selected, has_target = self._world_model(trajectories, sequences, scores, step)
        world_model = WorldModelWeights(lambdas, selected)
        joint = world_model if c.paw.enabled and c.paw.update == "joint" else None
        frozen = self.critic is not None and step < c.critic.warmup_steps
        totals = UpdateMetrics(self.passages.label(trajectories, sequences))
        for epoch in range(c.algo.epochs):
            for chosen in self._minibatches(len(sequences), step, epoch):
                if self.critic is not None and self.critic.backbone is not None:
                    self._critic_step(chosen, sequences, scores, credit, totals)
                if not frozen:
                    self._optimizer_step(chosen, sequences, scores, credit, joint, totals)
                elif self.critic is not None and self.critic.backbone is None:
                    self._head_step(chosen, sequences, scores, credit, totals)
        if c.paw.enabled and c.paw.update == "alternate" and (step + 1) % c.paw.interval == 0 and not frozen:
            self._optimizer_step(range(len(sequences)), sequences, scores, None, world_model, totals)
        self.passages.add(step + 1, shown_passages(trajectories))
        totals.learning_rate = float(self.scheduler.get_last_lr()[0])
        if totals.moved:  # training steps in which the policy stayed do not count
            self.scheduler.step()
        self.optimizer_steps = totals.attempted
        metrics = totals.metrics(c.paw.enabled, scores.ref_logprobs is not None, self.critic is not None)
        flat = np.concatenate(credit.advantages)
        metrics["policy/advantage_abs_mean"] = float(np.abs(flat).mean())
        metrics["policy/entropy"] = float(scores.entropies.mean())
        metrics["policy/group_spread_share"] = float(credit.policy_mask.mean())
        if c.paw.enabled:
            metrics["wm/lambda_mean"] = float(lambdas.mean())
            metrics["wm/target_share"] = float(has_target.mean())
            metrics["wm/selected_share"] = float(selected.sum() / max(1, has_target.sum()))
        return metrics

    def _world_model(
        self, trajectories, sequences: Sequence[TokenSequence], scores: TokenStats, step: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """lambda of each trajectory [B]; of the transitions [M] the selected ones, and those that can be: only where
        there is an observation to predict."""
        c = self.config
        selected = np.zeros(len(scores.entropies), dtype=bool)
        has_target = np.zeros(len(scores.entropies), dtype=bool)
        has_target[[s.transition for q in sequences for s in q.spans if s.observation]] = True
        if not c.paw.enabled:
            return np.zeros(len(trajectories)), selected, has_target
        success = np.array([t.success_return for t in trajectories])
        groups = np.array([t.group for t in trajectories])
        lambdas = group_lambdas(success, groups, c.algo.success_reward, c.paw.lambda_0, c.paw.balance)
        seed = (c.seed, 3, step)
        among = has_target
        if c.paw.deduplicate:
            among = among & first_of_equals([t for trajectory in trajectories for t in trajectory.transitions])
        numbers = np.flatnonzero(among)
        picked = select_transitions(scores.entropies[numbers], c.paw.alpha, c.paw.selection, seed=seed)
        selected[numbers[picked]] = True
        return lambdas, selected, has_target

    def _minibatches(self, total: int, step: int, epoch: int) -> list[list[int]]:
        """Sequences of each optimizer step, in order of their numbers."""
        a = self.config.algo
        count = a.minibatches if a.minibatch_size is None else -(-total // a.minibatch_size)
        count = min(count, total)
        if count == 1:
            return [list(range(total))]
        order = np.random.default_rng([self.config.seed, 2, step, epoch]).permutation(total)
        return [sorted(int(i) for i in part) for part in np.array_split(order, count)]

    def _optimizer_step(
        self, chosen: Sequence[int], sequences, scores: TokenStats, credit: Credit | None,
        world_model: WorldModelWeights | None, totals: UpdateMetrics,
    ) -> None:  # fmt: skip
        """Gradient of one optimizer batch, whose denominators are those of the whole of it, and the step.

        No credit: without the policy's loss (and a shared critic's). No world model: without its loss.
        """
        picked = [sequences[i] for i in chosen]
        c = self.config
        tables = build_tables(
            picked, scores, credit, world_model, c.algo.aggregation, longest_action(c.rollout, c.env, c.layout)
        )
        totals.policy_steps += credit is not None
        totals.wm_steps += world_model is not None
        shared = self.critic if credit and self.critic is not None and self.critic.backbone is None else None
        for batch in self._packed(picked, tables):
            extra = (lambda h, b=batch: self._value_loss(shared, h, b, totals, c.critic.coef)) if shared else None
            totals.add(batch, backward(self.policy, batch, self.settings, self.chunk, extra), chosen)
        norm, stepped = self._step()
        totals.moved |= stepped
        totals.count_step(stepped)
        totals.norms.append(norm)

    def _step(self) -> tuple[float, bool]:
        """The optimizer's step, left out where the gradient is not finite; its norm, and whether it was taken."""
        norm = self.optimizer.clip_gradients(self.config.optim.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm), finite

    def _packed(self, sequences: Sequence[TokenSequence], tables: Sequence[RowTable]) -> Iterator[PackedBatch]:
        """Micro-batches of the sequences that have a row at all."""
        live = [i for i, t in enumerate(tables) if len(t.positions)]
        lengths = [packing.input_length(tables[i]) for i in live]
        for members in packing.plan_micro_batches(lengths, self.config.token_budget):
            yield packing.pack(sequences, tables, [live[i] for i in members], self.policy.device)

    # ------------------------------------------------------------------------------------------------ critic

    def _value_loss(
        self, critic: Critic, hidden, batch: PackedBatch, totals: UpdateMetrics, coef: float
    ) -> torch.Tensor:
        """The critic's summed loss on the policy rows of a micro-batch; `hidden` [N, H] are the rows' hidden states."""
        rows = batch.value_rows()
        values = critic.values(hidden[rows.index])
        loss, clipped = value_loss(
            values, rows.old_values, rows.targets, coef * rows.weights, self.config.critic.value_clip
        )
        totals.add_values(values.detach(), rows.targets, clipped, float(loss.detach()) / coef)
        return loss

    def _critic_tables(self, picked: Sequence[TokenSequence], scores: TokenStats, credit: Credit) -> list[RowTable]:
        return build_tables(picked, scores, credit, None, "token-mean", 1)

    def _critic_step(self, chosen, sequences, scores: TokenStats, credit: Credit, totals: UpdateMetrics) -> None:
        """One optimizer step of a critic with a backbone of its own."""
        assert self.critic is not None
        assert self.critic.backbone is not None
        picked = [sequences[i] for i in chosen]
        for batch in self._packed(picked, self._critic_tables(picked, scores, credit)):
            hidden = self.critic.backbone.hidden(batch.input_ids, batch.position_ids, batch.lengths)[batch.row_tokens]
            self._value_loss(self.critic, hidden, batch, totals, 1.0).backward()
        norm = self.critic.step()
        totals.count_step(math.isfinite(norm))
        totals.critic_norms.append(norm)

    def _head_step(self, chosen, sequences, scores: TokenStats, credit: Credit, totals: UpdateMetrics) -> None:
        """Critic warm-up on a shared backbone: the head alone moves."""
        assert self.critic is not None
        picked = [sequences[i] for i in chosen]
        for batch in self._packed(picked, self._critic_tables(picked, scores, credit)):
            with torch.no_grad():
                hidden = self.policy.hidden(batch.input_ids, batch.position_ids, batch.lengths)[batch.row_tokens]
            self._value_loss(self.critic, hidden, batch, totals, 1.0).backward()
        # Parameters of the policy have no gradient here, and AdamW leaves such parameters alone.
        norm, stepped = self._step()
        totals.count_step(stepped)
        totals.critic_norms.append(norm)


def learning_rate_factor(step: int, optim: OptimConfig, steps: int) -> float:
    """Of the peak, in training step `step` of `steps`: a linear warm-up, the peak, and a linear decay from there.

    >>> optim = OptimConfig(schedule="linear", warmup_steps=1)
    >>> [learning_rate_factor(step, optim, 5) for step in range(5)]
    [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if step < optim.warmup_steps:
        return (step + 1) / (optim.warmup_steps + 1)
    if optim.schedule == "constant":
        return 1.0
    return max(0.0, 1 - (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps))


def _scatter(
    column: dict[int, np.ndarray], flat: np.ndarray, batch: PackedBatch, sequences: Sequence[TokenSequence]
) -> None:
    """Puts a micro-batch's flat results under the numbers of their transitions."""
    at = 0
    for i in batch.members:
        for span in sequences[i].spans:
            size = span.action[1] - span.action[0]
            column[span.transition] = flat[at : at + size]
            at += size
