"""Makes search environments and their expert: what `envs.make("search")` and `envs.make_expert("search")` call."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from paw_fast.config.env import EnvConfig
from paw_fast.envs.json_files import DataIssues, warn_once
from paw_fast.envs.search_qa.datasets import Question, load_mixture
from paw_fast.envs.search_qa.env import SearchEnv
from paw_fast.envs.search_qa.expert import SearchExpert
from paw_fast.envs.search_qa.query_batcher import QueryBatcher
from paw_fast.envs.search_qa.retrieval import Retriever, cache_folder, index_issues, index_of, open_index
from paw_fast.envs.search_qa.retrieval.records import MAX_TOPK
from paw_fast.envs.search_qa.synthetic_corpus import WORLD_VERSION, World, make_world
from paw_fast.errors import UserError


def make(
    train: Sequence[str] = (), eval: Sequence[str] = (), corpus: str | os.PathLike[str] | None = None,
    retriever: str | None = None, dialect: Literal["auto", "queries", "query"] = "auto", timeout_s: float = 30.0,
    retries: int = 3, topk: int = 3, format_reward: float = 0.0, max_steps: int = 5, seed: int = 0,
    num_train: int = EnvConfig.num_train,
    num_unseen: int = EnvConfig.num_unseen, cache_dir: str | os.PathLike[str] | None = None,
) -> SearchEnv:  # fmt: skip
    """A search environment.

    train, eval: question files (`FILE` or `FILE:WEIGHT`). corpus: a corpus file, which is indexed at its first use,
    or an index folder. retriever: the address of a server instead of a corpus, with its dialect, the time limit of a
    request in seconds and how often it is tried again before all waits. Without any of these a world of linked facts
    is generated: seed, num_train, num_unseen. topk: passages a search shows. max_steps: actions of an episode, the
    last of which can only be an answer. Raises `UserError`.
    """
    if not 1 <= topk <= MAX_TOPK:
        raise UserError(f"--env.topk is {topk}, expected 1 to {MAX_TOPK}")
    if corpus is not None and retriever is not None:
        raise UserError("--env.corpus and --env.retriever exclude each other: passages come from one of them")
    if not (train or eval or corpus or retriever):
        world = lru_cache(maxsize=1)(lambda: make_world(seed, num_train, num_unseen))
        splits: dict[str, Callable[[], Sequence[Question]]] = {
            "train": lambda: world().train, "unseen": lambda: world().unseen
        }  # fmt: skip
        return SearchEnv(splits, QueryBatcher(_world_index(world, seed, num_train, num_unseen, cache_dir), topk),
                         max_steps, format_reward)  # fmt: skip
    if not (train or eval):
        raise UserError("there are passages but no questions: give --env.train and --env.eval files")
    if corpus is None and retriever is None:
        raise UserError("there are questions but no passages: give --env.corpus FILE or --env.retriever ADDRESS")
    splits = {"train": lambda: _load("train", train), "unseen": lambda: _load("eval", eval)}
    if retriever is not None:
        from paw_fast.envs.search_qa.retrieval.remote import RemoteRetriever

        found: Retriever = RemoteRetriever(retriever, dialect=dialect, timeout_s=timeout_s, retries=retries)
    else:
        assert corpus is not None
        found = open_index(index_of(Path(corpus), cache_dir))
        for line in index_issues(found):
            warn_once(f"{corpus}: {line}")
    return SearchEnv(splits, QueryBatcher(found, topk), max_steps, format_reward, notes=True)


def _load(option: str, files: Sequence[str]) -> list[Question]:
    if not files:
        raise UserError(f"no questions: give --env.{option} FILE")
    issues = DataIssues()
    questions = load_mixture(files, issues)
    for line in issues.lines():
        warn_once(f"--env.{option}: {line}")
    return questions


def _world_index(
    world: Callable[[], World], seed: int, num_train: int, num_unseen: int, cache_dir: str | os.PathLike[str] | None
) -> Retriever:
    """The BM25 index of a generated world, from the cache where it was made before."""
    from paw_fast.envs.search_qa.retrieval import bm25

    folder = cache_folder(cache_dir) / f"world-seed{seed}-{num_train}-{num_unseen}-v{WORLD_VERSION}"
    if not (folder / "meta.json").is_file():
        bm25.build_from(world().passages, folder)
    return open_index(folder)


def make_expert(early_answer_prob: float = 0.0, seed: int = 0) -> SearchExpert:
    """The expert that is imitated; see there for `early_answer_prob`."""
    return SearchExpert(early_answer_prob, random.Random(f"paw-fast search expert {seed}"))
