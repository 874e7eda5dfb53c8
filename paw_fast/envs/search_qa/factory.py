"""Creates search environments and their expert."""

from __future__ import annotations

import importlib.util
import json
import os
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from paw_fast.envs.json_files import DataIssues, warn_once
from paw_fast.envs.search_qa.config import SearchConfig, SearchExpertConfig
from paw_fast.envs.search_qa.datasets import Question, load_mixture
from paw_fast.envs.search_qa.env import SearchEnv
from paw_fast.envs.search_qa.expert import SearchExpert
from paw_fast.envs.search_qa.query_batcher import QueryBatcher
from paw_fast.envs.search_qa.retrieval import Retriever, index_cache, index_issues, index_of, open_index
from paw_fast.envs.search_qa.synthetic_corpus import WORLD_VERSION, World, make_world
from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs.atomic_files import user_errors
from paw_fast.runs.cached_folder import cached_folder
from paw_fast.types import Task


def make(config: SearchConfig, cache_dir: str | os.PathLike[str] | None = None) -> SearchEnv:
    """Creates a search environment.

    Without question files, corpus and retriever, a synthetic world of linked facts is generated. Indexes are cached in
    `cache_dir` (default: paw-fast in the XDG cache folder). Raises `UserError`.
    """
    train, evaluation, corpus, retriever = config.train, config.eval, config.corpus, config.retriever
    if not (train or evaluation or corpus or retriever):
        counts = config.game_seed, config.num_train, config.num_unseen
        world = lru_cache(maxsize=1)(lambda: make_world(*counts))
        splits: dict[str, Callable[[], Sequence[Question]]] = {
            "train": lambda: world().train, "unseen": lambda: world().unseen
        }  # fmt: skip
        batcher = QueryBatcher(_world_index(world, *counts, cache_dir), config.topk)
        return SearchEnv(splits, batcher, config.max_steps, config.format_reward)
    if not (train or evaluation):
        raise UserError("there are passages but no questions: give --env.train and --env.eval files")
    if corpus is None and retriever is None:
        raise UserError("there are questions but no passages: give --env.corpus FILE or --env.retriever ADDRESS")
    splits = {"train": lambda: _load("train", train), "unseen": lambda: _load("eval", evaluation)}
    if retriever is not None:
        from paw_fast.envs.search_qa.retrieval.remote import RemoteRetriever

        found: Retriever = RemoteRetriever(
            retriever, dialect=config.dialect, timeout_s=config.retriever_timeout_s, retries=config.retriever_retries
        )
    else:
        assert corpus is not None
        found = open_index(index_of(Path(corpus), cache_dir))
        for line in index_issues(found):
            warn_once(f"{corpus}: {line}")
    return SearchEnv(splits, QueryBatcher(found, config.topk), config.max_steps, config.format_reward, notes=True)


def task_content(env: object, task: Task) -> str:
    """What makes a question what it is: its text, golden answers and supporting titles."""
    return json.dumps([task.info["question"], list(task.info["golden"]), list(task.info["supporting"])])


def generator(config: SearchConfig) -> str:
    """Version of the generated world; empty for questions from files."""
    is_given = config.train or config.eval or config.corpus or config.retriever
    return "" if is_given else f"generated world, version {WORLD_VERSION}"


def check_installed(config: SearchConfig) -> None:
    """Raises `UserError` if a package or a file that the settings need is missing."""
    needed = ("bm25s", "Stemmer") if config.retriever is None else ("httpx",)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--env search needs {', '.join(missing)}: {install_hint('search')}")
    if config.corpus is not None and not config.corpus.expanduser().exists():
        raise UserError(f"no corpus at {config.corpus}: give a .jsonl or .json file, or the folder of an index")


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
    """Returns the cached BM25 index of a generated world; builds it if there is none."""
    from paw_fast.envs.search_qa.retrieval import bm25

    folder = index_cache(cache_dir) / f"world-seed{seed}-{num_train}-{num_unseen}-v{WORLD_VERSION}"
    with user_errors("write the index", folder, "set XDG_CACHE_HOME to a folder that can be written"):
        cached_folder(
            folder, lambda hidden: bm25.build_from(world().passages, hidden / "index"), "files of a generated world",
            folder.with_name(f".{folder.name}.lock"),
        )  # fmt: skip
    return open_index(folder / "index")


def make_expert(config: SearchConfig, seed: int = 0, careful: bool = False) -> SearchExpert:
    """Creates the expert; with early answers as in `config.expert`, unless it is `careful`."""
    expert = SearchExpertConfig() if careful else config.expert
    rng = random.Random(f"paw-fast search expert {seed}")
    return SearchExpert(expert.early_answer_prob, rng, share=expert.early_answer_share)
