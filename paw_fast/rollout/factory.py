"""Makes the parts that play episodes from a run's config: environments, chat format, engine, agent loop."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paw_fast import envs
from paw_fast.config import EnvConfig, TrainConfig
from paw_fast.envs.base import Env
from paw_fast.errors import UserError
from paw_fast.models.packed_attention import ATTENTION_NAME
from paw_fast.models.policy import Policy, resolve_device
from paw_fast.rollout.agent_loop import AgentLoop, AgentSettings, Stage, untimed
from paw_fast.rollout.chat_format import ChatFormat, declared_stop_ids
from paw_fast.rollout.engines.base import RolloutEngine
from paw_fast.rollout.engines.transformers import TransformersEngine
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.rollout.weight_sync import ModelWeights, WeightSource


def make_env(config: EnvConfig) -> Env:
    """The environment of a config. Raises `UserError` when its data cannot be used."""
    return envs.make_env(config)


def make_chat(policy: Policy, config: TrainConfig) -> ChatFormat:
    """The chat format of a policy, with the end tokens that its model declares."""
    declared = declared_stop_ids(getattr(policy.model, "generation_config", None))
    return ChatFormat(policy.tokenizer, declared, config.rollout.chat_date)


def make_engine(policy: Policy, config: TrainConfig) -> RolloutEngine:
    """The engine of a config in this process, on the policy's own weights."""
    if config.rollout.engine == "transformers":
        return transformers_engine(policy, config)
    with tempfile.TemporaryDirectory(prefix="paw-fast-") as folder:
        policy.model.config.save_pretrained(folder)
        share = config.rollout.memory_share or (0.4 if policy.device.type == "cuda" else None)
        return vllm_engine(
            Path(folder), make_chat(policy, config), ModelWeights(policy.model), config,
            dtype=str(policy.model.dtype).removeprefix("torch."), memory_share=share,
        )  # fmt: skip


def transformers_engine(
    policy: Policy, config: TrainConfig, source: WeightSource | None = None, chat: ChatFormat | None = None
) -> TransformersEngine:
    """The transformers engine; with a `source`, on weights of its own."""
    length, slots = max_length(policy.model.config, config), config.rollout.slots
    chat = chat or make_chat(policy, config)
    try:
        engine = TransformersEngine(policy.model, chat, slots=slots, max_length=length, source=source)
        if source is None:
            engine.check()
    except (MemoryError, RuntimeError) as error:  # torch raises a plain RuntimeError on the CPU
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate", str(error)):
            raise
        raise UserError(
            f"--rollout.slots {slots}: no memory for the keys and values of so many episodes of up to {length} tokens: "
            "take fewer slots, or a smaller --rollout.max-sequence-tokens"
        ) from error
    return engine


def empty_transformers_engine(
    model_config: Any, chat: ChatFormat, source: WeightSource, config: TrainConfig, dtype: str
) -> TransformersEngine:
    """The transformers engine on a model made from its config alone: call `update_weights` first, then `check`."""
    device = resolve_device(config.model.device)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            model_config,
            dtype=getattr(torch, dtype),
            attn_implementation=ATTENTION_NAME,
            trust_remote_code=config.model.trust_remote_code,
        )
    return transformers_engine(Policy(model.eval().requires_grad_(False), chat.tokenizer), config, source, chat)


def vllm_engine(
    folder: Path, chat: ChatFormat, source: WeightSource, config: TrainConfig, *, dtype: str,
    memory_share: float | None, version: int = 0,
) -> RolloutEngine:  # fmt: skip
    """The vLLM engine; `folder` holds the model's config.json."""
    from paw_fast.rollout.engines.vllm import VllmEngine, VllmSettings

    r, trust = config.rollout, config.model.trust_remote_code
    model_config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    settings = VllmSettings(
        slots=r.slots, max_length=max_length(model_config, config), dtype=dtype, trust_remote_code=trust,
        tensor_parallel=r.tensor_parallel, memory_share=memory_share, seed=config.seed % 2**31,
    )  # fmt: skip
    return VllmEngine(folder, chat, source, settings, version)


def max_length(model_config: Any, config: TrainConfig) -> int:
    """Length limit of a sequence in tokens: the config's, and no more than the model has positions."""
    limit = config.rollout.max_sequence_tokens
    return min(limit, getattr(model_config.get_text_config(), "max_position_embeddings", None) or limit)


def make_loop(
    tokenizer: Any, model_config: Any, engine: RolloutEngine, env: Env, config: TrainConfig, stage: Stage = untimed
) -> AgentLoop:
    """The agent loop of a config, with its training temperature."""
    chat = ChatFormat(tokenizer, engine.chat.stop_ids, config.rollout.chat_date)
    slots = [env.spawn() for _ in range(config.rollout.slots)]
    template = PromptTemplate.load(config.env.template, config.env.name)
    return AgentLoop(engine, slots, chat, template, agent_settings(model_config, config), stage)


def agent_settings(model_config: Any, config: TrainConfig) -> AgentSettings:
    """How the episodes of a config are played, with its training temperature."""
    r, a = config.rollout, config.algo
    if r.max_action_tokens >= (length := max_length(model_config, config)):
        raise UserError(
            f"--rollout.max-action-tokens is {r.max_action_tokens}, expected less than the {length} tokens that the "
            "model takes: a prompt must fit before it"
        )
    return AgentSettings(
        layout=config.layout, history=config.env.history, max_steps=config.env.max_steps,
        max_action_tokens=r.max_action_tokens, max_sequence_tokens=length,
        temperature=r.temperature, success_reward=a.success_reward, invalid_penalty=a.invalid_penalty,
        max_observation_chars=config.env.max_observation_chars,
        max_observation_tokens=config.env.max_observation_tokens, max_episode_s=r.max_episode_s,
        max_episode_tokens=r.max_episode_tokens, max_retries=config.env.max_retries,
    )  # fmt: skip
