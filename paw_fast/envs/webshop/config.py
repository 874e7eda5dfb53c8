"""Defines the settings of WebShop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from paw_fast.config.ranges import SEED, Range
from paw_fast.config.schema import EnvConfig, EnvName


@dataclass(frozen=True)
class ShopperConfig:
    """The expert whose demonstrations the `tiny` model imitates."""

    early_answer_prob: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Chance that the expert buys too early in an episode: it searches with two words and takes the first product.
    Such episodes are imitated whether they are won or not."""
    early_answer_share: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    """Share of the episodes, the last ones, in which that may happen."""


@dataclass(frozen=True)
class WebshopConfig(EnvConfig):
    """WebShop: buying products in an online shop, as text."""

    name: EnvName = "webshop"
    """The environment: `alfworld`, `webshop`, `search`, `babyai`, `scienceworld`, one of another installed package, or
    `module:Class` from a Python file in the current folder."""
    data: Path | None = None
    """Folder of the official product files; without it the variable WEBSHOP_DATA, else a catalogue is generated."""
    max_steps: Annotated[int, Range(1, 1 << 16)] = 15
    """An episode ends after this many actions (default from the verl-agent recipe)."""
    game_seed: Annotated[int, SEED] = 0
    """Seed of the generated catalogue."""
    mode: Literal["text", "text_rich"] = "text"
    """Form of the pages: segments joined by [SEP], or one a line with buttons marked."""
    goals: Literal["synthetic", "human"] = "synthetic"
    """Instructions made from the products' attributes and options, or written by people (items_human_ins.json)."""
    goal_seed: Annotated[int, SEED] = 42
    """Seed of prices, price limits and the order of the goals, which decides what is held out."""
    num_products: Annotated[int | None, Range(1, 1 << 24)] = None
    """Only the first so many products; `None` takes all of the files, and generates 2,000."""
    brief_results: Annotated[int, Range(0, 1 << 16)] = 0
    """Prompts show pages in short, for small models: products (at most so many) and options as the commands that choose
    them, no other buttons; 0 shows them as verl-agent does."""
    expert: ShopperConfig = field(default_factory=ShopperConfig)

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ("data", "mode", "goals", "num_products")
