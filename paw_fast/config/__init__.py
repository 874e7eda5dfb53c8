"""The settings of a run: `schema` defines them, `validation` checks them, `toml` reads and writes them, `choice` finds
the classes of environments and algorithms."""

from paw_fast.config.choice import (
    algo_config,
    data_variable,
    env_config,
    with_absolute_paths,
    with_algo,
    with_chat_date,
    with_env,
    with_full_paths,
)
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
    "data_variable",
    "describe",
    "env_config",
    "from_mapping",
    "load_preset",
    "load_toml",
    "read_toml",
    "recipes",
    "to_toml",
    "validate",
    "with_absolute_paths",
    "with_algo",
    "with_chat_date",
    "with_env",
    "with_full_paths",
]
