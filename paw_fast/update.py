"""Scores a step's rollouts and updates the policy with them.

    trajectories -> sequences -> score: old and reference log-probs, action entropies
                        |              |
                        |     advantages, selected transitions, lambda
                        v              v
                    row tables -> packed micro-batches -> fused loss -> optimizer

B trajectories, M transitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paw_fast import packing
from paw_fast.advantages import grpo_advantages
from paw_fast.config import TrainConfig
from paw_fast.kernels import POLICY, WORLD_MODEL, LossSettings
from paw_fast.losses import RowResults, backward, rows_per_chunk, score
from paw_fast.packing import RowTable
from paw_fast.policy import Policy
from paw_fast.types import TokenSequence, Trajectory
from paw_fast.world_model import group_lambdas, select_transitions


@dataclass(frozen=True)
class Scores:
    """What the trainer's own model says of the sampled tokens before the update.

    old_logprobs, ref_logprobs: an array for each sequence, one number for each of its action tokens
    (ref_logprobs None without a KL term). entropies [M]: mean over each action's tokens, in nats.
    """

    old_logprobs: list[np.ndarray]
    ref_logprobs: list[np.ndarray] | None
    entropies: np.ndarray


class Learner:
    """Owns the optimizer. `reference` is the frozen policy of the KL term, None where there is no such term."""

    def __init__(self, policy: Policy, reference: Policy | None, config: TrainConfig):
        self.policy, self.reference, self.config = policy, reference, config
        o = config.optim
        self.optimizer = torch.optim.AdamW(
            policy.model.parameters(), lr=o.learning_rate, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay
        )
        total = max(1, config.steps * config.algo.epochs * config.algo.minibatches)

        def factor(step: int) -> float:
            if step < o.warmup_steps:
                return (step + 1) / (o.warmup_steps + 1)
            return 1.0 if o.schedule == "constant" else max(0.0, 1 - step / total)

        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.chunk = rows_per_chunk(policy, config.logits_budget_mb << 20)
        a = config.algo
        self.settings = LossSettings(
            clip_low=a.clip_low, clip_high=a.clip_high, dual_clip=a.dual_clip, kl_coef=a.kl_coef,
            entropy_coef=a.entropy_coef, wm_loss=config.paw.loss, tau=config.paw.tau,
            temperature=config.rollout.temperature,
        )  # fmt: skip

    def score(self, sequences: Sequence[TokenSequence]) -> Scores:
        """One pass of the policy and, for the KL term, one of the reference; only action tokens reach the head."""
        old, entropies = self._score_with(self.policy, sequences)
        ref = self._score_with(self.reference, sequences)[0] if self.reference is not None else None
        means = [
            float(entropy[start:end].mean())
            for sequence, entropy in zip(sequences, entropies, strict=True)
            for start, end in _action_slices(sequence)
        ]
        return Scores(old, ref, np.array(means))

    def _score_with(self, policy: Policy, sequences: Sequence[TokenSequence]):
        tables = [packing.action_rows(s) for s in sequences]
        logprobs: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        entropies: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        lengths = [packing.input_length(t) for t in tables]
        for members in packing.plan_micro_batches(lengths, self.config.token_budget):
            batch = packing.pack(sequences, tables, members, policy.device)
            got = score(policy, batch, self.config.rollout.temperature, self.chunk)
            for out, flat in zip((logprobs, entropies), got, strict=True):
                for i, part in zip(members, flat.split(batch.row_counts), strict=True):
                    out[i] = part.numpy()
        return logprobs, entropies

    def update(
        self, trajectories: Sequence[Trajectory], sequences: Sequence[TokenSequence], scores: Scores, step: int
    ) -> dict[str, float]:
        """The optimizer steps of one rollout batch; returns its metrics."""
        c = self.config
        groups = np.array([t.group for t in trajectories])
        returns = torch.tensor([t.episode_return for t in trajectories])
        advantages = grpo_advantages(returns, torch.from_numpy(groups), c.algo.normalize_std).numpy()
        lambdas = np.zeros(len(trajectories))
        selected = np.zeros(len(scores.entropies), dtype=bool)
        if c.paw.enabled:
            success = np.array([t.success_return for t in trajectories])
            lambdas = group_lambdas(success, groups, c.algo.success_reward, c.paw.lambda_0, c.paw.balance)
            selected = select_transitions(scores.entropies, c.paw.alpha, c.paw.selection, seed=(c.seed, 3, step))
        totals = _Totals()
        for epoch in range(c.algo.epochs):
            for members in self._minibatches(len(trajectories), step, epoch):
                chosen = [i for i, s in enumerate(sequences) if s.trajectory in members]
                self._optimizer_step(chosen, sequences, scores, advantages, lambdas, selected, totals)
        metrics = totals.metrics(c.paw.enabled, self.reference is not None)
        metrics["policy/advantage_abs_mean"] = float(np.abs(advantages).mean())
        metrics["policy/entropy"] = float(scores.entropies.mean())
        if c.paw.enabled:
            metrics["wm/lambda_mean"] = float(lambdas.mean())
            metrics["wm/selected_share"] = float(selected.mean())
        return metrics

    def _minibatches(self, total: int, step: int, epoch: int) -> list[set[int]]:
        count = self.config.algo.minibatches
        if count == 1:
            return [set(range(total))]
        order = np.random.default_rng([self.config.seed, 2, step, epoch]).permutation(total)
        return [{int(i) for i in part} for part in np.array_split(order, count)]

    def _optimizer_step(
        self, chosen, sequences, scores: Scores, advantages, lambdas, selected, totals: _Totals
    ) -> None:
        """Gradient of one optimizer batch, whose denominators are those of the whole of it, and the step."""
        tables = build_tables(chosen, sequences, scores, advantages, lambdas, selected)
        picked = [sequences[i] for i in chosen]
        for members in packing.plan_micro_batches([packing.input_length(t) for t in tables], self.config.token_budget):
            batch = packing.pack(picked, tables, members, self.policy.device)
            totals.add(batch.rows, backward(self.policy, batch, self.settings, self.chunk), sum(batch.lengths))
        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.config.optim.max_grad_norm)
        if torch.isfinite(norm):
            totals.learning_rate = float(self.scheduler.get_last_lr()[0])
            self.optimizer.step()
        totals.skipped += not torch.isfinite(norm)
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        totals.norms.append(float(norm))


def _action_slices(sequence: TokenSequence) -> list[tuple[int, int]]:
    """Where each span's action tokens lie among the action tokens of the sequence."""
    ends = np.cumsum([s.action[1] - s.action[0] for s in sequence.spans])
    return [(int(e - (s.action[1] - s.action[0])), int(e)) for s, e in zip(sequence.spans, ends, strict=True)]


def build_tables(
    chosen: Sequence[int], sequences: Sequence[TokenSequence], scores: Scores, advantages: np.ndarray,
    lambdas: np.ndarray, selected: np.ndarray,
) -> list[RowTable]:  # fmt: skip
    """Row tables of an optimizer batch: policy rows weigh 1 / (its action tokens), world-model rows lambda / N_WM,
    where N_WM counts the selected observation tokens of the whole optimizer batch."""
    picked = [sequences[i] for i in chosen]
    num_actions = sum(s.action[1] - s.action[0] for q in picked for s in q.spans)
    num_observed = sum(len(s.observation) for q in picked for s in q.spans if selected[s.transition])
    tables = []
    for i, sequence in zip(chosen, picked, strict=True):
        actions = packing.action_rows(sequence)
        actions.weights[:] = 1.0 / num_actions
        actions.old_logprobs[:] = scores.old_logprobs[i]
        if scores.ref_logprobs is not None:
            actions.ref_logprobs[:] = scores.ref_logprobs[i]
        actions.advantages[:] = advantages[sequence.trajectory]
        scale = float(lambdas[sequence.trajectory]) / max(1, num_observed)
        weights = [scale if selected[s.transition] else 0.0 for s in sequence.spans]
        tables.append(packing.join_rows(actions, packing.observation_rows(sequence, weights)))
    return tables


class _Totals:
    """Sums of row results over an update."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.learning_rate = 0.0
        self.skipped = 0
        self.tokens = 0
        self._sums = dict.fromkeys(("policy", "wm", "clipped", "kl", "rows", "saturated", "error", "wm_rows"), 0.0)

    def add(self, rows, result: RowResults, tokens: int) -> None:
        kinds = rows.kinds.cpu()
        policy, observed = kinds == POLICY, kinds == WORLD_MODEL
        s = self._sums
        s["policy"] += float(result.losses[policy].double().sum())
        s["wm"] += float(result.losses[observed].double().sum())
        s["clipped"] += int((result.flags[policy] & 1).sum())
        s["kl"] += float(result.kl[policy].double().sum())
        s["rows"] += int(policy.sum())
        s["saturated"] += int((result.flags[observed] & 2).ne(0).sum())
        s["error"] += float((1 - result.logprobs[observed].double().exp()).sum())
        s["wm_rows"] += int(observed.sum())
        self.tokens += tokens

    def metrics(self, world_model: bool, reference: bool) -> dict[str, float]:
        s, steps = self._sums, max(1, len(self.norms))
        out = {
            "policy/loss": s["policy"] / steps,
            "policy/clip_fraction": s["clipped"] / max(1, s["rows"]),
            "optim/grad_norm": float(np.mean(self.norms)) if self.norms else 0.0,
            "optim/learning_rate": self.learning_rate,
            "optim/skipped_steps": float(self.skipped),
            "tokens": float(self.tokens),
        }
        if reference:
            out["policy/kl"] = s["kl"] / max(1, s["rows"])
        if world_model:
            out["wm/loss"] = s["wm"] / steps
            if s["wm_rows"]:
                out["wm/clipped_token_ratio"] = s["saturated"] / s["wm_rows"]
                out["wm/next_observation_error"] = s["error"] / s["wm_rows"]
        return out
