"""Defines the `EnvSpec` of ScienceWorld."""

from __future__ import annotations

from paw_fast.envs.base import EnvSpec, Extra
from paw_fast.envs.scienceworld.config import ScienceWorldConfig
from paw_fast.envs.scienceworld.env import ScienceWorldEnv
from paw_fast.envs.scienceworld.expert import GoldExpert
from paw_fast.envs.scienceworld.jvm import check_installed


def make(config: ScienceWorldConfig) -> ScienceWorldEnv:
    """Creates a ScienceWorld environment in this process. Raises `UserError` without scienceworld or Java."""
    check_installed()
    return ScienceWorldEnv(config)


def make_expert(config: ScienceWorldConfig, seed: int = 0, careful: bool = False) -> GoldExpert:
    """Creates the expert, which is deterministic and never answers early. Raises `UserError` without scienceworld."""
    check_installed()
    return GoldExpert(config)


SPEC = EnvSpec(
    name="scienceworld",
    config=ScienceWorldConfig,
    make=make,
    make_expert=make_expert,
    check_installed=lambda config: check_installed(),
    extras=(Extra("scienceworld", "the ScienceWorld environment (--env scienceworld)", ("scienceworld",)),),
    keywords={"seed": "game_seed"},
)
