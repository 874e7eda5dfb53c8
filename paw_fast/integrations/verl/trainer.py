"""Registers trainer modes of verl that prepare their batches for the policy loss `paw`.

`trainer.v1.trainer_mode=paw_sync` is verl's `sync` with the world-model weights computed after the advantages, and so
for its other modes. They need verl's TransferQueue, and a GPU to run.
"""

from __future__ import annotations

from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.v1 import get_trainer_cls, register_trainer
from verl.workers.utils.padding import response_to_nested

from paw_fast.integrations.verl.batch import WEIGHTS, world_model_weights
from paw_fast.integrations.verl.loss import settings

MODES = ("sync", "colocate_async", "separate_async")
_FIELDS = ("uid", "response_mask", "rm_scores", "entropy", "prompts", "responses", WEIGHTS)


class PawTrainerMixin:
    """Adds the world-model weights to the batches of a trainer of verl (a subclass of its `PPOTrainer`)."""

    config: Any
    global_steps: int

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Computes advantages as verl does, then the token weights of the policy loss `paw`."""
        # Before verl rejects responses, which clears their masks.
        before = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        sampled = before["response_mask"].to_padded_tensor(0)
        batch = super()._compute_advantage(batch, metrics)  # pyright: ignore[reportAttributeAccessIssue]
        if not settings.paw.enabled:
            return batch
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(_FIELDS))
        nested = data["response_mask"]
        lengths = nested.offsets().diff()
        valid = torch.arange(sampled.shape[1], device=lengths.device) < lengths[:, None]
        present = set(data.keys())
        padded = {name: data[name].to_padded_tensor(0) for name in ("rm_scores", "entropy", WEIGHTS) if name in present}
        tokens = None
        if settings.paw.deduplicate:
            rows = zip(data["prompts"].unbind(), data["responses"].unbind(), strict=True)
            tokens = [(prompt.tolist(), response.tolist()) for prompt, response in rows]
        actor = self.config.actor_rollout_ref.actor
        steps = max(1, len(lengths) // (actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n))
        weights, found = world_model_weights(
            sampled, valid, padded.get("entropy"), padded["rm_scores"], data["uid"].tolist(),
            settings.paw, (int(actor.data_loader_seed), 3, self.global_steps), steps,
            float(self.config.actor_rollout_ref.rollout.temperature), tokens,
        )  # fmt: skip
        metrics.update(found)
        kept = nested.to_padded_tensor(0).bool()
        own = padded.get(WEIGHTS, torch.ones_like(weights)).to(weights.dtype)
        output = {WEIGHTS: response_to_nested(torch.where(kept, own, weights), nested)}
        return tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(output, batch_size=len(lengths))
        )


for _mode in MODES:
    _base = get_trainer_cls(_mode)
    register_trainer(f"paw_{_mode}")(type(f"Paw{_base.__name__}", (PawTrainerMixin, _base), {"__module__": __name__}))
