"""Defines the `EnvSpec` of BabyAI."""

from __future__ import annotations

from paw_fast.envs.babyai.config import BabyaiConfig
from paw_fast.envs.babyai.env import BabyaiEnv
from paw_fast.envs.babyai.expert import BotExpert
from paw_fast.envs.babyai.levels import check_installed
from paw_fast.envs.base import EnvSpec, Extra


def make(config: BabyaiConfig) -> BabyaiEnv:
    """Creates a BabyAI environment. Raises `UserError` without minigrid, and for levels that it does not have."""
    return BabyaiEnv(config)


def make_expert(config: BabyaiConfig, seed: int = 0, careful: bool = False) -> BotExpert:
    """Creates the expert, which is deterministic and never answers early. Raises `UserError` without minigrid."""
    check_installed()
    return BotExpert()


SPEC = EnvSpec(
    name="babyai",
    config=BabyaiConfig,
    make=make,
    make_expert=make_expert,
    check_installed=lambda config: check_installed(config.levels),
    extras=(Extra("babyai", "the BabyAI environment (--env babyai)", ("minigrid",)),),
    keywords={"seed": "game_seed"},
)
