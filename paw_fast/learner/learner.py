"""Computes the token statistics of rollouts and updates the policy with them. `Learner` is the whole of it.

    trajectories -> sequences -> token statistics: old and reference log-probs, values, action entropies
                        |
    credit, world-model weights -> loss rows -> packed micro-batches -> fused loss -> optimizer

B trajectories, M transitions, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from paw_fast.algorithms.base import Credit, has_reward_variance
from paw_fast.algorithms.world_model import WorldModelWeights, token_weights
from paw_fast.config import OptimConfig, TrainConfig
from paw_fast.kernels import LossSettings
from paw_fast.learner import packing
from paw_fast.learner.critic import Values, make_critic
from paw_fast.learner.forward_backward import backward, compute_token_stats, rows_per_chunk
from paw_fast.learner.loss_rows import build_tables, choose_tokens, longest_action
from paw_fast.learner.memory_guard import MemoryGuard
from paw_fast.learner.optim import make_optimizer, trained_parameters
from paw_fast.learner.packing import PackedBatch, RowTable
from paw_fast.learner.seen_passages import SeenPassages, shown_passages
from paw_fast.learner.sequences import build_sequences
from paw_fast.learner.update_metrics import UpdateMetrics
from paw_fast.models.policy import Policy, check_finite
from paw_fast.types import RolloutBatch, TokenSequence, TokenStats, Trajectory


@dataclass(frozen=True)
class _UpdateInputs:
    """What the optimizer steps of one training step learn from."""

    sequences: Sequence[TokenSequence]
    stats: TokenStats
    credit: Credit


class Learner:
    """Owns the optimizer and the critic.

    reference: the frozen policy of the KL term, None where there is none. max_tokens: length limit of a sequence, None
    for none. seen_passages: the passages that earlier steps have shown.
    """

    def __init__(
        self, policy: Policy, reference: Policy | None, config: TrainConfig, max_tokens: int | None = None,
        seen_passages: SeenPassages | None = None,
    ):  # fmt: skip
        self.policy, self.reference, self.config, self.max_tokens = policy, reference, config, max_tokens
        self.seen_passages = seen_passages or SeenPassages()
        o, a = config.optim, config.algo
        self.critic = make_critic(policy, config)
        groups = [{"params": trained_parameters(policy.model)}, *self.critic.parameter_groups()]
        self.optimizer = make_optimizer(groups, o.learning_rate, o, config.offload.optimizer)

        # Counts training steps, whose number of optimizer steps may vary, without those of the critic's warm-up. A
        # critic's learning rate is constant.
        steps = config.steps - self.critic.warmup_steps
        factors = [lambda step: learning_rate_factor(step, o, steps), *[lambda step: 1.0] * (len(groups) - 1)]
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factors)
        self.optimizer_steps = 0
        """Number of optimizer steps in the last update, skipped ones included."""
        self._memory = MemoryGuard(config.token_budget, rows_per_chunk(policy, config.logits_budget_mb << 20))
        self._report: Callable[[float], None] = lambda share: None
        self.settings = LossSettings(
            clip_low=a.clip_low, clip_high=a.clip_high, dual_clip=a.dual_clip,
            kl_coef=a.kl_coef if a.kl_in == "loss" else 0.0, entropy_coef=a.entropy_coef, wm_loss=config.paw.loss,
            kl_clamp=a.kl_clamp, tau=config.paw.tau, temperature=config.rollout.temperature,
        )  # fmt: skip

    @property
    def chunk(self) -> int:
        """Number of rows of logits that exist at a time."""
        return self._memory.chunk

    def stateful_parts(self) -> dict[str, Any]:
        """What a checkpoint saves and restores beside the weights, by the names that it takes."""
        critic = self.critic if self.critic.needed else None
        return {"optimizer": self.optimizer, "scheduler": self.scheduler, "critic": critic}

    def apply_settings(self) -> None:
        """Puts the config's optimizer settings in the place of those that a checkpoint has restored."""
        o = self.config.optim
        rates = [o.learning_rate] + [self.config.critic.learning_rate] * (len(self.optimizer.param_groups) - 1)
        self.scheduler.base_lrs = list(rates)
        for group, rate, factor in zip(self.optimizer.param_groups, rates, self.scheduler.lr_lambdas, strict=True):
            group |= {"initial_lr": rate, "lr": rate * factor(self.scheduler.last_epoch)}
            group |= {"betas": (o.beta1, o.beta2), "weight_decay": o.weight_decay}
        self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        for group in (g for optimizer in self.critic.own_optimizers() for g in optimizer.param_groups):
            group |= {"lr": self.config.critic.learning_rate}
            group |= {"betas": (o.beta1, o.beta2), "weight_decay": o.weight_decay}

    # ------------------------------------------------------------------------------------------- token statistics

    def make_batch(self, trajectories: Sequence[Trajectory]) -> RolloutBatch:
        """The trajectories with the sequences that they are learned from."""
        c = self.config
        sequences = build_sequences(trajectories, c.layout, c.paw.horizon, self.max_tokens)
        return RolloutBatch(tuple(trajectories), tuple(sequences))

    def compute_token_stats(self, batch: RolloutBatch) -> TokenStats:
        """Runs the policy once and, where they are wanted, the reference and the critic, on the batch's action tokens.

        The batch may be a part of the step's: `TokenStats.join` joins the parts.
        """
        return self._memory.run(lambda: self._token_stats(batch))

    def _token_stats(self, batch: RolloutBatch) -> TokenStats:
        old, values, entropies = self._run(self.policy, batch.sequences, self.critic.shared_values())
        ref = self._run(self.reference, batch.sequences)[0] if self.reference is not None else None
        values = values or self._separate_values(batch.sequences)
        return TokenStats(old, ref, values or None, [entropies])

    def _micro_batches(self, sequences: Sequence[TokenSequence]) -> Iterator[PackedBatch]:
        tables = [packing.action_rows(s) for s in sequences]
        lengths = [packing.input_length(t) for t in tables]
        for members in packing.plan_micro_batches(lengths, self._memory.tokens):
            yield packing.pack(sequences, tables, members, self.policy.device)

    def _run(
        self, policy: Policy, sequences: Sequence[TokenSequence], values_of: Values | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray], torch.Tensor]:
        """Log-probs and (with `values_of`) values of the policy, M arrays [A_m] each; entropies of all action tokens,
        on the policy's device."""
        columns: list[dict[int, np.ndarray]] = [{}, {}]
        places: dict[int, np.ndarray] = {}
        entropies, total = [torch.zeros(0, device=policy.device)], 0
        for batch in self._micro_batches(sequences):
            logprobs, entropy, values = compute_token_stats(
                policy, batch, self.config.rollout.temperature, self.chunk, values_of
            )
            _scatter(columns[0], logprobs.numpy(), batch, sequences)
            if values is not None:
                _scatter(columns[1], values.numpy(), batch, sequences)
            _scatter(places, np.arange(total, total + len(entropy)), batch, sequences)
            entropies.append(entropy)
            total += len(entropy)
        order = np.concatenate([np.zeros(0, np.int64), *(places[m] for m in sorted(places))])
        logprobs, values = ([column[m] for m in sorted(column)] for column in columns)
        return logprobs, values, torch.cat(entropies)[torch.from_numpy(order).to(policy.device)]

    @torch.no_grad()
    def _separate_values(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """The values of a critic with a pass of its own: M arrays [A_m], or an empty list."""
        column: dict[int, np.ndarray] = {}
        if self.critic.has_own_pass:
            for batch in self._micro_batches(sequences):
                _scatter(column, self.critic.separate_values(batch).cpu().numpy(), batch, sequences)
        return [column[m] for m in sorted(column)]

    # ------------------------------------------------------------------------------------------------ the update

    def update(
        self, batch: RolloutBatch, stats: TokenStats, credit: Credit, world_model: WorldModelWeights | None, step: int,
        report: Callable[[int, int, float], None] = lambda number, total, share: None,
    ) -> dict[str, float]:  # fmt: skip
        """The optimizer steps of training step `step`; returns their metrics.

        `report(number, total, share)` is called as the optimizer batch `number` (from 1) of `total` advances; `share`
        of its sequences have been learned from.
        """
        c = self.config
        inputs = _UpdateInputs(batch.sequences, stats, credit)
        joint = world_model if c.paw.update == "joint" else None
        warming_up = step < self.critic.warmup_steps
        metrics = UpdateMetrics(self.seen_passages.label(batch))
        alternate = world_model is not None and c.paw.update == "alternate" and (step + 1) % c.paw.interval == 0
        alternate = alternate and not warming_up
        epochs = [self._minibatches(len(batch.sequences), step, epoch) for epoch in range(c.algo.epochs)]
        total = sum(map(len, epochs)) + alternate
        for number, chosen in enumerate((part for epoch in epochs for part in epoch), 1):
            self._report = partial(report, number, total)
            self._report(0.0)
            self._critic_step(inputs, chosen, metrics, warming_up)
            if not warming_up:
                self._policy_step(inputs, chosen, credit, joint, metrics, (step, number))
        if alternate:
            self._report = partial(report, total, total)
            self._policy_step(inputs, range(len(batch.sequences)), None, world_model, metrics, (step, total))
        if metrics.skipped:  # else the last gradient was finite, and so are the weights it was computed from
            advice = "nothing of this step is kept; go on from the last checkpoint with --resume"
            check_finite(self.policy.model, f"step {step + 1}", advice)
        self.seen_passages.add(step + 1, shown_passages(batch.trajectories))
        metrics.learning_rate = float(self.scheduler.get_last_lr()[0])
        if metrics.moved:  # training steps in which the policy did not change do not count
            self.scheduler.step()
        self.optimizer_steps = metrics.attempted
        values = metrics.metrics(world_model is not None, stats.ref_logprobs is not None, self.critic.needed)
        values["policy/advantage_abs_mean"] = float(np.abs(np.concatenate(credit.advantages)).mean())
        values["policy/entropy"] = float(stats.entropies.mean())
        if not self.critic.needed or c.algo.dynamic_sampling:  # a critic's advantages need no variance in a group
            values["policy/group_spread_share"] = float(has_reward_variance(batch.trajectories).mean())
        if world_model is not None:
            values["wm/lambda_mean"] = float(world_model.lambdas.mean())
            values["wm/target_share"] = float(world_model.has_target.mean())
            values["wm/selected_share"] = float(world_model.selected.sum() / max(1, world_model.has_target.sum()))
        return values

    def _minibatches(self, total: int, step: int, epoch: int) -> list[list[int]]:
        """Sequences of each optimizer step, in order of their numbers."""
        a = self.config.algo
        count = a.minibatches if a.minibatch_size is None else -(-total // a.minibatch_size)
        count = min(count, total)
        if count == 1:
            return [list(range(total))]
        order = np.random.default_rng([self.config.seed, 2, step, epoch]).permutation(total)
        return [sorted(int(i) for i in part) for part in np.array_split(order, count)]

    def _policy_step(
        self, inputs: _UpdateInputs, chosen: Sequence[int], credit: Credit | None,
        world_model: WorldModelWeights | None, metrics: UpdateMetrics, number: tuple[int, int],
    ) -> None:  # fmt: skip
        """One step of the policy's optimizer; the denominators of its losses are those of the whole optimizer batch.

        credit: None leaves out the policy loss and a shared critic's. world_model: None leaves out its loss. number:
        that of the training step, from 0, and of the optimizer step in it, from 1.
        """
        c, picked = self.config, [inputs.sequences[i] for i in chosen]
        longest = longest_action(c.rollout, c.env, c.layout)
        subset = weights = None
        if world_model is not None:
            weights = token_weights(world_model, picked, self.policy.device)
            subset = choose_tokens(picked, world_model, c.paw.token_fraction, (c.seed, 6, *number))
            metrics.add_subset(subset)
        tables = build_tables(picked, inputs.stats, credit, world_model, c.algo.aggregation, longest, subset)
        metrics.policy_steps += credit is not None
        metrics.wm_steps += world_model is not None

        def accumulate() -> None:
            learned = 0
            for batch in self._packed(picked, tables, weights):
                value_loss = self.critic.loss_in_policy_update(batch, metrics) if credit else None
                metrics.add(batch, backward(self.policy, batch, self.settings, self.chunk, value_loss), chosen)
                learned += len(batch.members)
                self._report(learned / len(picked))

        self._within_memory(accumulate, metrics)
        norm, stepped = self._step()
        metrics.moved |= stepped
        metrics.count_step(stepped)
        metrics.norms.append(norm)

    def _critic_step(
        self, inputs: _UpdateInputs, chosen: Sequence[int], metrics: UpdateMetrics, warming_up: bool
    ) -> None:
        """What the critic learns from an optimizer batch outside the policy's update."""

        def micro_batches() -> Iterator[PackedBatch]:
            picked = [inputs.sequences[i] for i in chosen]
            return self._packed(picked, build_tables(picked, inputs.stats, inputs.credit, None))

        accumulate = partial(self._within_memory, metrics=metrics)
        self.critic.update(self.policy, micro_batches, metrics, warming_up, self._step, accumulate)

    def _within_memory(self, accumulate: Callable[[], None], metrics: UpdateMetrics) -> None:
        """Accumulates an optimizer batch's gradients; where memory runs out, from the beginning with less at a time."""
        before = metrics.snapshot()

        def undo() -> None:
            metrics.restore(before)
            for optimizer in (self.optimizer, *self.critic.own_optimizers()):
                optimizer.zero_grad(set_to_none=True)

        self._memory.run(accumulate, undo)

    def _step(self) -> tuple[float, bool]:
        """A step of the policy's optimizer, skipped where the gradient is not finite; its norm, whether it was
        taken."""
        norm = self.optimizer.clip_gradients(self.config.optim.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm), finite

    def _packed(
        self, sequences: Sequence[TokenSequence], tables: Sequence[RowTable], weights: torch.Tensor | None = None
    ) -> Iterator[PackedBatch]:
        """Micro-batches of the sequences that have a row."""
        live = [i for i, t in enumerate(tables) if len(t.positions)]
        lengths = [packing.input_length(tables[i]) for i in live]
        for members in packing.plan_micro_batches(lengths, self._memory.tokens):
            yield packing.pack(sequences, tables, [live[i] for i in members], self.policy.device, weights)


def learning_rate_factor(step: int, optim: OptimConfig, steps: int) -> float:
    """Share of the peak in training step `step` of `steps`: a linear warm-up, the peak, a linear decay from there.

    >>> optim = OptimConfig(schedule="linear", warmup_steps=1)
    >>> [learning_rate_factor(step, optim, 5) for step in range(5)]
    [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if step < optim.warmup_steps:
        return (step + 1) / (optim.warmup_steps + 1)
    if optim.schedule == "constant":
        return 1.0
    return max(0.0, 1 - (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps))


def join_groups(parts: Sequence[tuple[RolloutBatch, TokenStats]]) -> tuple[RolloutBatch, TokenStats]:
    """Groups and their statistics, in whatever order they ended, as a step's batch in order of group numbers."""
    ordered = sorted(parts, key=lambda part: part[0].trajectories[0].episode_id)
    return RolloutBatch.join([batch for batch, _ in ordered]), TokenStats.join([stats for _, stats in ordered])


def _scatter(
    column: dict[int, np.ndarray], flat: np.ndarray, batch: PackedBatch, sequences: Sequence[TokenSequence]
) -> None:
    """Stores a micro-batch's flat results under the numbers of their transitions."""
    at = 0
    for i in batch.members:
        for span in sequences[i].spans:
            size = span.action[1] - span.action[0]
            column[span.transition] = flat[at : at + size]
            at += size
