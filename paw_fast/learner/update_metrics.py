"""Sums the results of loss rows over an update, and computes the metrics from them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paw_fast.kernels import CLIPPED, POLICY, SATURATED, WORLD_MODEL
from paw_fast.learner.forward_backward import RowResults
from paw_fast.learner.loss_rows import TokenSubset
from paw_fast.learner.packing import PackedBatch
from paw_fast.learner.seen_passages import NEW, REPEATED


class UpdateMetrics:
    """Accumulates the results of the micro-batches of an update.

    labels                  for each token of each sequence, the kind of passage it belongs to (see `seen_passages`)
    norms, critic_norms     gradient norms, one per optimizer step
    policy_steps, wm_steps  optimizer steps with the policy loss and with the world-model loss: all of them in a joint
                            update, different ones if the two alternate
    attempted, skipped      optimizer steps, and those skipped because the gradient was not finite
    moved                   whether the policy's weights have changed
    """

    def __init__(self, labels: Sequence[np.ndarray] | None = None) -> None:
        self._labels = labels
        self._passage_errors = {REPEATED: 0.0, NEW: 0.0}
        self._passage_tokens = {REPEATED: 0, NEW: 0}
        self.norms: list[float] = []
        self.critic_norms: list[float] = []
        self.learning_rate = 0.0
        self.policy_steps = 0
        self.wm_steps = 0
        self.skipped = self.attempted = 0
        self.moved = False
        self.tokens = 0
        names = ("policy", "wm", "clipped", "kl", "rows", "saturated", "error", "wm_rows")
        self._sums = dict.fromkeys(names, 0.0)
        self._subset_tokens = np.zeros(2, dtype=np.int64)
        self._value_loss, self._value_clipped = 0.0, 0
        self._values: list[Tensor] = []
        self._targets: list[Tensor] = []

    def snapshot(self) -> dict[str, Any]:
        """What has been accumulated so far, for `restore`."""
        return {name: copy.copy(value) for name, value in vars(self).items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what was accumulated since `snapshot` returned `state`."""
        vars(self).update({name: copy.copy(value) for name, value in state.items()})

    def count_step(self, stepped: bool) -> None:
        """Counts an optimizer step of the policy or the critic, taken or skipped."""
        self.attempted += 1
        self.skipped += not stepped

    def add(self, batch: PackedBatch, result: RowResults, chosen: Sequence[int] = ()) -> None:
        """Adds a micro-batch of the policy's update; its members are indices into `chosen`, the sequences of the
        optimizer batch."""
        kinds = batch.rows.kinds.cpu()
        policy, observed = kinds == POLICY, kinds == WORLD_MODEL
        s = self._sums
        s["policy"] += float(result.losses[policy].double().sum())
        s["wm"] += float(result.losses[observed].double().sum())
        s["clipped"] += int((result.flags[policy] & CLIPPED).ne(0).sum())
        s["kl"] += float(result.kl[policy].double().sum())
        s["rows"] += int(policy.sum())
        s["saturated"] += int((result.flags[observed] & SATURATED).ne(0).sum())
        s["error"] += float((1 - result.logprobs[observed].double().exp()).sum())
        s["wm_rows"] += int(observed.sum())
        if self._labels is not None and chosen:
            # A row reads the token before the one it predicts.
            parts = zip(batch.members, batch.lengths, strict=True)
            of_targets = np.concatenate([self._labels[chosen[i]][1 : length + 1] for i, length in parts])
            labels = of_targets[batch.row_tokens.cpu().numpy()[observed.numpy()]]
            errors = (1 - result.logprobs[observed].double().exp()).numpy()
            for label in (REPEATED, NEW):
                self._passage_errors[label] += float(errors[labels == label].sum())
                self._passage_tokens[label] += int((labels == label).sum())
        self.tokens += sum(batch.lengths)

    def add_subset(self, subset: TokenSubset | None) -> None:
        """Adds the observation tokens that an optimizer step drew from those of the selected transitions."""
        if subset is not None:
            self._subset_tokens += (int(subset.kept.sum()), subset.num_eligible)

    def add_values(self, values: Tensor, targets: Tensor, clipped: Tensor, loss: float) -> None:
        """Adds a micro-batch of the critic's update; `loss` is weighted over the optimizer batch already."""
        self._values.append(values.cpu())
        self._targets.append(targets.cpu())
        self._value_clipped += int(clipped.sum())
        self._value_loss += loss

    def metrics(self, world_model: bool, reference: bool, critic: bool) -> dict[str, float]:
        """Returns means over rows and over the optimizer steps with each loss, by metric name; and `tokens`."""
        s = self._sums
        out = {
            "policy/loss": s["policy"] / max(1, self.policy_steps),
            "policy/clip_fraction": s["clipped"] / max(1, s["rows"]),
            "optim/grad_norm": float(np.mean(self.norms)) if self.norms else 0.0,
            "optim/learning_rate": self.learning_rate,
            "optim/skipped_steps": float(self.skipped),
            "tokens": float(self.tokens),
        }
        if reference:
            out["policy/kl"] = s["kl"] / max(1, s["rows"])
        if world_model:
            if self.wm_steps:
                out["wm/loss"] = s["wm"] / self.wm_steps
            if s["wm_rows"]:
                out["wm/clipped_token_ratio"] = s["saturated"] / s["wm_rows"]
                out["wm/next_observation_error"] = s["error"] / s["wm_rows"]
            if self._subset_tokens[1]:
                out["wm/token_share"] = float(self._subset_tokens[0] / self._subset_tokens[1])
            for name, label in (("repeated", REPEATED), ("new", NEW)):
                if self._passage_tokens[label]:
                    error = self._passage_errors[label] / self._passage_tokens[label]
                    out[f"wm/{name}_passage_error"] = error
            if total := sum(self._passage_tokens.values()):
                out["wm/new_passage_share"] = self._passage_tokens[NEW] / total
        if critic and self._values:
            out |= self._critic_metrics(max(1, len(self.critic_norms) or self.policy_steps))
        return out

    def _critic_metrics(self, steps: int) -> dict[str, float]:
        values, targets = torch.cat(self._values).double(), torch.cat(self._targets).double()
        spread = float(targets.var(unbiased=False))
        # Below the epsilon of the whitening the targets are practically equal, and the ratio is noise.
        explained = 1 - float((targets - values).var(unbiased=False)) / spread if spread > 1e-8 else 0.0
        out = {
            "critic/loss": self._value_loss / steps,
            "critic/value_mean": float(values.mean()),
            "critic/explained_variance": explained,
            "critic/clip_fraction": self._value_clipped / len(values),
        }
        if self.critic_norms:
            out["critic/grad_norm"] = float(np.mean(self.critic_norms))
        return out
