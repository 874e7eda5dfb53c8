"""What vLLM's workers do for us: a mix-in that vLLM adds to its worker class, by this module's name."""

from __future__ import annotations

from typing import Any

from paw_fast.rollout.weight_sync import NcclWeights, WeightSource

EXTENSION = "paw_fast.rollout.engines.vllm_worker.WeightLoader"


class WeightLoader:
    """Methods of a vLLM worker that `collective_rpc` calls by name. Everything else of `self` is the worker's."""

    def paw_load_weights(self: Any, source: WeightSource, version: int) -> None:
        """Loads every weight of the source into this worker's part of the model."""
        import dataclasses

        if isinstance(source, NcclWeights):
            source = dataclasses.replace(source, rank=1 + self.rank)
        self.reload_weights(weights_iterator=source.tensors(version))
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        method = getattr(head, "quant_method", None)
        if method is not None:
            # A tied head shares the embedding's tensor, but on the CPU it multiplies with a packed copy of its own.
            method.process_weights_after_loading(head)
