"""Extends the workers of vLLM with the loading of weights. vLLM adds the mix-in `EXTENSION` to its worker class."""

from __future__ import annotations

from typing import Any

from paw_fast.rollout.weight_sync import NcclWeights, WeightSource

EXTENSION = "paw_fast.rollout.engines.vllm_worker.WeightLoader"


class WeightLoader:
    """Methods that `collective_rpc` calls by name on a vLLM worker. `self` is the worker."""

    def paw_load_weights(self: Any, source: WeightSource, version: int) -> None:
        """Loads all weights of the source into this worker's shard of the model."""
        import dataclasses

        if isinstance(source, NcclWeights):
            source = dataclasses.replace(source, rank=1 + self.rank)
        self.reload_weights(weights_iterator=source.tensors(version))
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        method = getattr(head, "quant_method", None)
        if method is not None:
            # On the CPU a tied head uses its own packed copy of the embedding, which must be updated too.
            method.process_weights_after_loading(head)
