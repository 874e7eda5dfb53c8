"""Checks at start-up that everything a run needs later is installed and valid."""

from __future__ import annotations

import importlib.util

from paw_fast import envs
from paw_fast.config import TrainConfig
from paw_fast.config.services import log_services
from paw_fast.errors import UserError
from paw_fast.extras import vllm_hint
from paw_fast.models.policy import resolve_device
from paw_fast.models.trained import require_accelerate
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.runs.adapter import require_peft
from paw_fast.runs.log_services import check_services


def check_parts(config: TrainConfig) -> None:
    """Checks for what a run needs only later, so that it does not fail after minutes. Raises `UserError`."""
    PromptTemplate.load(config.env.template, config.env.name)
    resolve_device(config.model.device)
    if (check := envs.find(config.env.name).check_installed) is not None:
        check(config.env)
    if config.rollout.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError(f"--rollout.engine vllm needs vLLM: {vllm_hint()}")
    if config.lora.rank:
        require_peft("--lora.rank")
    if config.offload.reference:
        require_accelerate()
    check_services(log_services(config.log))
