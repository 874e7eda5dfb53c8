"""Defines the `EnvSpec` of search question answering."""

from __future__ import annotations

from pathlib import Path

from paw_fast.envs.base import EnvSpec, Extra
from paw_fast.envs.search_qa.config import SearchConfig
from paw_fast.envs.search_qa.doctor import check_data
from paw_fast.envs.search_qa.factory import check_installed, generator, make, make_expert, task_content

SPEC = EnvSpec(
    name="search",
    config=SearchConfig,
    make=make,
    make_expert=make_expert,
    check_installed=check_installed,
    templates=Path(__file__).parent / "templates",
    extras=(
        Extra(
            "search",
            "search question answering (--env search) and the retrieval server",
            ("bm25s", "PyStemmer", "fastapi", "uvicorn", "httpx"),
        ),
        Extra("search-dense", "a dense index of passages (paw-fast retriever index --kind dense)", ("faiss-cpu",)),
    ),
    doctor=check_data,
    has_state_text=False,
    is_retrieval=True,
    task_content=task_content,
    generator=generator,
    keywords={"seed": "game_seed", "timeout_s": "retriever_timeout_s", "retries": "retriever_retries"},
)
