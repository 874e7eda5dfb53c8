"""Defines the `EnvSpec` of BabyAI."""

from __future__ import annotations

import importlib.metadata

from paw_fast.envs.babyai.config import BabyaiConfig
from paw_fast.envs.babyai.env import BabyaiEnv
from paw_fast.envs.babyai.expert import BotExpert
from paw_fast.envs.babyai.levels import check_installed, layout_of
from paw_fast.envs.base import EnvSpec, Extra
from paw_fast.types import Task


def make(config: BabyaiConfig) -> BabyaiEnv:
    """Creates a BabyAI environment. Raises `UserError` without minigrid, and for levels that it does not have."""
    return BabyaiEnv(config)


def make_expert(config: BabyaiConfig, seed: int = 0, careful: bool = False) -> BotExpert:
    """Creates the expert, which is deterministic and never answers early. Raises `UserError` without minigrid."""
    check_installed()
    return BotExpert()


def task_content(env: BabyaiEnv, task: Task) -> str:
    """What makes a mission what it is: its layout, the mission itself included. Resets the environment."""
    env.reset(task)
    return layout_of(env.level_env)


def generator(config: BabyaiConfig) -> str:
    """Version of minigrid, which generates the missions."""
    return f"minigrid {importlib.metadata.version('minigrid')}"


SPEC = EnvSpec(
    name="babyai",
    config=BabyaiConfig,
    make=make,
    make_expert=make_expert,
    check_installed=lambda config: check_installed(config.levels),
    extras=(Extra("babyai", "the BabyAI environment (--env babyai)", ("minigrid",)),),
    keywords={"seed": "game_seed"},
    task_content=task_content,
    generator=generator,
)
