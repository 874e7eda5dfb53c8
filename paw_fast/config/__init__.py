"""The settings of a run: `schema` defines them, `validation` checks them, `toml` reads and writes them, `choice` finds
the classes of environments and algorithms."""

from paw_fast.config.choice import (
    algo_config,
    data_variable,
    env_config,
    with_algo,
    with_chat_date,
    with_env,
    with_full_paths,
)
from paw_fast.config.lora import LoraConfig
from paw_fast.config.offload import OffloadConfig
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
)
from paw_fast.config.toml import describe, from_mapping, load_preset, load_toml, read_toml, recipes, to_toml
from paw_fast.config.validation import validate
from paw_fast.config.warm_start import WarmStartConfig

__all__ = [
    "AlgoConfig",
    "CriticConfig",
    "EnvConfig",
    "LoraConfig",
    "ModelConfig",
    "OffloadConfig",
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
    "with_algo",
    "with_chat_date",
    "with_env",
    "with_full_paths",
]
