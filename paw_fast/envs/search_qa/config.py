"""Defines the settings of search question answering."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from paw_fast.config.ranges import SECONDS, SEED, Range
from paw_fast.config.schema import EnvConfig, EnvName
from paw_fast.envs.search_qa.retrieval.records import MAX_TOPK
from paw_fast.errors import UserError


@dataclass(frozen=True)
class SearchExpertConfig:
    """The expert whose demonstrations the `tiny` model imitates."""

    early_answer_prob: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Chance, in each turn, that the expert answers before it has followed the question's chain of facts to its end.
    Such episodes are imitated whether they are won or not."""
    early_answer_share: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    """Share of the episodes, the last ones, in which that may happen."""


@dataclass(frozen=True)
class SearchConfig(EnvConfig):
    """Question answering with a search engine as a tool."""

    name: EnvName = "search"
    """The environment: `alfworld`, `webshop`, `search`, `babyai`, `scienceworld`, one of another installed package, or
    `module:Class` from a Python file in the current folder."""
    max_steps: Annotated[int, Range(1, 1 << 16)] = 5
    """An episode ends after this many actions, of which the last can only be an answer."""
    history: Annotated[int, Range(0, 1 << 16)] = 4
    """Earlier turns shown in the prompt, in the `window` layout (default from the verl-agent recipe)."""
    max_observation_tokens: Annotated[int, Range(0, 1 << 24)] = 500
    """Longer observations are cut to this many tokens of the policy's tokenizer in the prompt; a closing tag at the
    end is kept; 0 cuts none."""
    game_seed: Annotated[int, SEED] = 0
    """Seed of the generated facts and questions."""
    num_train: Annotated[int, Range(1, 1 << 20)] = 3600
    """Generated training questions."""
    num_unseen: Annotated[int, Range(1, 1 << 20)] = 200
    """Generated questions on facts that training never asks for."""
    train: tuple[str, ...] = ()
    """Question files to train on, each as FILE or FILE:WEIGHT; without files and passages, facts are generated."""
    eval: tuple[str, ...] = ()
    """Question files to evaluate on, each as FILE or FILE:WEIGHT."""
    corpus: Path | None = None
    """Passages: a corpus file (indexed at its first use) or the folder of an index."""
    retriever: str | None = None
    """Address of a server that speaks /retrieve, instead of a corpus."""
    dialect: Literal["auto", "queries", "query"] = "auto"
    """How that server is asked: many queries a request, one, or whichever it understands."""
    retriever_timeout_s: Annotated[float, SECONDS] = 30.0
    """Seconds a request may take."""
    retriever_retries: Annotated[int, Range(0, 1 << 16)] = 3
    """Further tries of a request before the run waits for the server."""
    topk: Annotated[int, Range(1, MAX_TOPK)] = 3
    """Passages that a search shows (default from the verl-agent recipe)."""
    format_reward: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Reward of a wrong answer in the right form, as a share of the reward of a right one."""
    expert: SearchExpertConfig = field(default_factory=SearchExpertConfig)

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ("train", "eval", "corpus", "retriever", "topk")
    CHANGEABLE_ON_RESUME: ClassVar[tuple[str, ...]] = (
        "retriever", "dialect", "retriever_timeout_s", "retriever_retries",
    )  # fmt: skip

    def check(self) -> None:
        if self.corpus is not None and self.retriever is not None:
            raise UserError("--env.corpus and --env.retriever exclude each other: passages come from one of them")

    def with_full_paths(self) -> SearchConfig:
        full = super().with_full_paths()
        assert isinstance(full, SearchConfig)
        train, evaluation = (
            tuple(str(Path(one).expanduser().absolute()) for one in files) for files in (self.train, self.eval)
        )
        return dataclasses.replace(full, train=train, eval=evaluation)
