"""Every setting of a run: what there is (`settings`), what is refused (`rules`), how it is read (`files`)."""

from paw_fast.config.choice import algo_config, with_algo
from paw_fast.config.resume import changes_on_resume
from paw_fast.config.schema import (
    AlgoConfig,
    CriticConfig,
    EnvConfig,
    ModelConfig,
    OptimConfig,
    PawConfig,
    PipelineConfig,
    RolloutConfig,
    TrainConfig,
    WarmStartConfig,
    with_chat_date,
)
from paw_fast.config.toml import describe, from_mapping, load_preset, load_toml, read_toml, recipes, to_toml
from paw_fast.config.validation import validate

__all__ = [
    "AlgoConfig",
    "CriticConfig",
    "EnvConfig",
    "ModelConfig",
    "OptimConfig",
    "PawConfig",
    "PipelineConfig",
    "RolloutConfig",
    "TrainConfig",
    "WarmStartConfig",
    "algo_config",
    "changes_on_resume",
    "describe",
    "from_mapping",
    "load_preset",
    "load_toml",
    "read_toml",
    "recipes",
    "to_toml",
    "validate",
    "with_algo",
    "with_chat_date",
]
