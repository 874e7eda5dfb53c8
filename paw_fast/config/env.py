"""Settings of the environments: one record for all, and which of its fields belong to which. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from paw_fast.errors import UserError


@dataclass(frozen=True)
class EnvConfig:
    """The environment and the data it plays on.

    The first settings are every environment's; the others belong to the environments that `ENV_SETTINGS` names.
    """

    name: Annotated[Literal["alfworld", "webshop", "search"], tyro.conf.arg(name="env", prefix_name=False)] = "alfworld"
    """Which environment."""
    data: Path | None = None
    """Folder of the official data set; without it the variable ALFWORLD_DATA or WEBSHOP_DATA, else generated data."""
    game_seed: int = 0
    """Seed of the generated data."""
    max_steps: int = 50
    """An episode ends after this many actions (V: 50 on ALFWorld, 15 on WebShop)."""
    template: str = "verl"
    """Prompt template: `verl` (thinks, then acts), `compact` (action only), or the path of a TOML file."""
    history: int = 2
    """Earlier turns shown in the prompt, in the `window` layout (V)."""
    max_observation_chars: int = 0
    """Longer observations are cut to this many characters in the prompt; 0 cuts none."""
    max_observation_tokens: int = 0
    """The same in tokens of the policy's tokenizer; a closing tag at the end stays."""

    # ALFWorld
    engine: Literal["native", "textworld"] = "native"
    """ALFWorld's dynamics: our own engine, or the reference (needs the `alfworld` extra)."""
    allow_reference_engine: bool = False
    """ALFWorld: games whose rules our engine does not know are played by the reference, which runs Python expressions
    of the game file. Counts on the command line only, never from a run's config."""
    size: Literal["small", "medium", "full"] = "small"
    """Size of generated households: 6-10 receptacles, in between, or as many as the official games have."""
    num_train: int = 3600
    """Generated training games; search: generated training questions."""
    num_unseen: int = 200
    """Generated games in rooms that training never sees; search: questions on facts that training never asks for."""

    # Search question answering
    train: tuple[str, ...] = ()
    """Question files to train on, each as FILE or FILE:WEIGHT; without files and passages a world is generated."""
    eval: tuple[str, ...] = ()
    """Question files to evaluate on, each as FILE or FILE:WEIGHT."""
    corpus: Path | None = None
    """Passages: a corpus file (indexed at its first use) or the folder of an index."""
    retriever: str | None = None
    """Address of a server that speaks /retrieve, instead of a corpus."""
    dialect: Literal["auto", "queries", "query"] = "auto"
    """How that server is asked: many queries a request, one, or whichever it understands."""
    retriever_timeout_s: float = 30.0
    """Seconds a request may take."""
    retriever_retries: int = 3
    """Further tries of a request before the run waits for the server."""
    topk: int = 3
    """Passages that a search shows (V)."""
    format_reward: float = 0.0
    """Reward of a wrong answer in the right form, as a share of the reward of a right one."""

    # WebShop
    mode: Literal["text", "text_rich"] = "text"
    """Form of the pages: segments joined by [SEP], or one a line with buttons marked."""
    goals: Literal["synthetic", "human"] = "synthetic"
    """Instructions made from the products' attributes and options, or written by people (items_human_ins.json)."""
    goal_seed: int = 42
    """Seed of prices, price limits and the order of the goals, which decides what is held out."""
    num_products: int | None = None
    """Only the first so many products; `None` takes all of the files, and generates 2,000."""
    brief_results: int = 0
    """Prompts show pages in short, for small models: products (at most so many) and options as the commands that choose
    them, no other buttons; 0 shows them as verl-agent does."""


ENV_SETTINGS: dict[str, dict[str, str]] = {
    "alfworld": {
        "data": "data", "game_seed": "seed", "max_steps": "max_steps", "engine": "engine", "size": "size",
        "allow_reference_engine": "allow_reference_engine", "num_train": "num_train", "num_unseen": "num_unseen",
    },
    "webshop": {
        "data": "data", "max_steps": "max_steps", "mode": "mode", "goals": "goals", "goal_seed": "seed",
        "num_products": "num_products", "game_seed": "catalogue_seed", "brief_results": "brief_results",
    },
    "search": {
        "game_seed": "seed", "max_steps": "max_steps", "num_train": "num_train", "num_unseen": "num_unseen",
        "train": "train", "eval": "eval", "corpus": "corpus", "retriever": "retriever", "dialect": "dialect",
        "retriever_timeout_s": "timeout_s", "retriever_retries": "retries", "topk": "topk",
        "format_reward": "format_reward",
    },
}  # fmt: skip
"""For each environment, the fields of `EnvConfig` that reach it, and what `envs.make` calls them."""

ENV_DEFAULTS: dict[str, dict[str, Any]] = {
    "alfworld": {},
    "webshop": {"max_steps": 15},
    "search": {"max_steps": 5, "history": 4, "max_observation_tokens": 500},
}
"""Where an environment's defaults are not those of `EnvConfig`."""

_PROMPT_SETTINGS = ("name", "max_steps", "template", "history", "max_observation_chars", "max_observation_tokens")


def env_config(name: str, **changes: Any) -> EnvConfig:
    """The environment's defaults. An unknown name is left to the parser, which lists the known ones."""
    return EnvConfig(**{"name": name, **ENV_DEFAULTS.get(name, {}), **changes})


def env_settings(config: EnvConfig) -> dict[str, Any]:
    """What `envs.make(config.name, ...)` is given. Raises `UserError` for a setting of another environment."""
    own = ENV_SETTINGS[config.name]
    for f in dataclasses.fields(config):
        if f.name in own or f.name in _PROMPT_SETTINGS or getattr(config, f.name) == f.default:
            continue
        others = ", ".join(name for name, fields in ENV_SETTINGS.items() if f.name in fields)
        raise UserError(f"--env.{f.name.replace('_', '-')} is a setting of {others}, and --env is {config.name}")
    return {name: getattr(config, field) for field, name in own.items()}


DATA_VARIABLES = {"alfworld": "ALFWORLD_DATA", "webshop": "WEBSHOP_DATA"}
"""Variables that name a folder of official data where --env.data does not."""


def data_variable(env: EnvConfig) -> str | None:
    """The variable that decides where this environment's data comes from; None where it is not set or not asked."""
    name = DATA_VARIABLES.get(env.name)
    return name if name and env.data is None and os.environ.get(name) else None


def with_full_paths(env: EnvConfig) -> EnvConfig:
    """The settings with their files' and folders' paths in full, so that they mean the same elsewhere and later."""
    variable = data_variable(env)
    data = env.data if variable is None else Path(os.environ[variable])
    data, corpus = (None if one is None else one.expanduser().absolute() for one in (data, env.corpus))
    template = str(Path(env.template).absolute()) if env.template.endswith(".toml") else env.template
    train, evaluation = (
        tuple(str(Path(one).expanduser().absolute()) for one in files) for files in (env.train, env.eval)
    )
    return dataclasses.replace(env, data=data, corpus=corpus, template=template, train=train, eval=evaluation)
