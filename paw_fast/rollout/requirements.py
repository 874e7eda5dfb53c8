"""Checks at start-up that everything a run needs later is installed and valid."""

from __future__ import annotations

import importlib.util

from paw_fast import envs
from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.models.policy import resolve_device
from paw_fast.rollout.prompts import PromptTemplate


def check_parts(config: TrainConfig) -> None:
    """Checks for what a run needs only later, so that it does not fail after minutes. Raises `UserError`."""
    PromptTemplate.load(config.env.template, config.env.name)
    resolve_device(config.model.device)
    if (check := envs.find(config.env.name).check_installed) is not None:
        check(config.env)
    if config.rollout.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        from paw_fast.rollout.engines.vllm import INSTALL_HINT

        raise UserError(f"--rollout.engine vllm needs vLLM: {INSTALL_HINT}")
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb needs wandb, which is not installed: pip install 'paw-fast[wandb]'")
