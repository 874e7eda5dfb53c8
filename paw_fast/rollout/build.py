"""Puts together what plays episodes: environment slots, prompt template, generator."""

from __future__ import annotations

import dataclasses

from paw_fast import envs
from paw_fast.config import TrainConfig
from paw_fast.env_config import EnvConfig, env_settings
from paw_fast.policy import Policy
from paw_fast.rollout.agent import AgentLoop, AgentSettings
from paw_fast.rollout.chat import ChatFormat
from paw_fast.rollout.engine import RolloutEngine
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.rollout.transformers_engine import TransformersEngine
from paw_fast.types import Env


def make_env(config: EnvConfig) -> Env:
    """The environment of a config. Raises `UserError` when its data cannot be used."""
    return envs.make(config.name, **env_settings(config))


def make_engine(policy: Policy, config: TrainConfig) -> RolloutEngine:
    """The generator of a config, over the policy's own weights."""
    r = config.rollout
    limit = getattr(policy.model.config, "max_position_embeddings", r.max_sequence_tokens)
    length = min(r.max_sequence_tokens, limit)
    return TransformersEngine(policy.model, ChatFormat(policy.tokenizer), slots=r.slots, max_length=length)


def make_loop(policy: Policy, engine: RolloutEngine, env: Env, config: TrainConfig) -> AgentLoop:
    """The agent loop of a config, with its training temperature."""
    r, a = config.rollout, config.algo
    limit = getattr(policy.model.config, "max_position_embeddings", r.max_sequence_tokens)
    settings = AgentSettings(
        layout=config.layout, history=config.env.history, max_steps=config.env.max_steps,
        max_action_tokens=r.max_action_tokens, max_sequence_tokens=min(r.max_sequence_tokens, limit),
        temperature=r.temperature, success_reward=a.success_reward, invalid_penalty=a.invalid_penalty,
        max_observation_chars=config.env.max_observation_chars,
        max_observation_tokens=config.env.max_observation_tokens,
    )  # fmt: skip
    slots = [env.spawn() for _ in range(r.slots)]
    template = PromptTemplate.load(config.env.template, config.env.name)
    return AgentLoop(engine, slots, ChatFormat(policy.tokenizer), template, settings)


def at_temperature(loop: AgentLoop, temperature: float) -> AgentLoop:
    """The same loop sampling at another temperature (for evaluation); engine and slots are shared."""
    settings = dataclasses.replace(loop.settings, temperature=temperature)
    other = AgentLoop(loop.engine, loop.envs, loop.chat, loop.template, settings)
    other.numbers = loop.numbers
    return other
