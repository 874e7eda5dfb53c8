"""Defines the `EnvSpec` of ALFWorld."""

from __future__ import annotations

from pathlib import Path

from paw_fast.envs.alfworld.config import AlfworldConfig
from paw_fast.envs.alfworld.doctor import check_data
from paw_fast.envs.alfworld.factory import check_installed, generator, make, make_expert
from paw_fast.envs.alfworld.games import read_task, task_content
from paw_fast.envs.base import EnvSpec, Extra

SPEC = EnvSpec(
    name="alfworld",
    config=AlfworldConfig,
    make=make,
    make_expert=make_expert,
    check_installed=check_installed,
    data_variable="ALFWORLD_DATA",
    templates=Path(__file__).parent / "templates",
    extras=(Extra("alfworld", "the reference engine of ALFWorld (--env.engine textworld)", ("alfworld", "textworld")),),
    doctor=check_data,
    play={"size": "medium"},
    read_task=read_task,
    keywords={"seed": "game_seed"},
    task_content=task_content,
    generator=generator,
)
