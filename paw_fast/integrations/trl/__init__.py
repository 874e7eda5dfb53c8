"""Adds PaW to TRL's GRPO trainer: `PawGRPOTrainer` and its settings, `PawConfig`. Needs the extra `trl`.

settings     PawConfig, and what of TRL's settings is refused
transitions  the transitions of TRL's completions, by its tool mask
lm_head      log-probs, entropies and the world-model loss by the fused kernels, inside the model's forward
trainer      PawGRPOTrainer
"""

from paw_fast.extras import install_hint

try:
    import trl as _trl  # noqa: F401
except ModuleNotFoundError as e:
    if e.name != "trl":
        raise
    raise ModuleNotFoundError(f"paw_fast.integrations.trl needs TRL: {install_hint('trl')}", name="trl") from e

from paw_fast.integrations.trl.settings import PawConfig
from paw_fast.integrations.trl.trainer import PawGRPOTrainer

__all__ = ["PawConfig", "PawGRPOTrainer"]
