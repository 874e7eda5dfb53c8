"""The settings of a run: `schema` defines them, `validation` checks them, `toml` reads and writes them."""

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
    "changes_on_resume",
    "describe",
    "from_mapping",
    "load_preset",
    "load_toml",
    "read_toml",
    "recipes",
    "to_toml",
    "validate",
    "with_chat_date",
]
