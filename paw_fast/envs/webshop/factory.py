"""Creates WebShop environments and their expert."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from paw_fast.envs.webshop import generate
from paw_fast.envs.webshop import goals as goal_rules
from paw_fast.envs.webshop import product_store as stores
from paw_fast.envs.webshop.catalogue import Catalogue
from paw_fast.envs.webshop.config import ShopperConfig, WebshopConfig
from paw_fast.envs.webshop.env import MODES, WebshopEnv
from paw_fast.envs.webshop.expert import Shopper
from paw_fast.envs.webshop.goals import Goals
from paw_fast.envs.webshop.parsing import Annotations, read_products
from paw_fast.envs.webshop.product_store import ProductStore
from paw_fast.envs.webshop.records import CatalogueReport
from paw_fast.envs.webshop.reward import SPACY_MODEL
from paw_fast.envs.webshop.search import SearchEngine, build_index, require
from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import cache_folder
from paw_fast.types import Task

_LOG = logging.getLogger("paw_fast.envs")
_PRODUCTS, _ATTRIBUTES, _HUMAN = "items_shuffle", "items_ins_v2", "items_human_ins"
SMALL = 1000
"""Products of the small official set."""

NUM_GENERATED = 2000
"""Products of a generated catalogue."""

PathLike = str | os.PathLike[str]


def make(
    config: WebshopConfig, products: PathLike | None = None, attributes: PathLike | None = None,
    human_goals: PathLike | None = None, show_attributes: bool = False,
    search: Callable[[str], Sequence[str]] | None = None, cache_dir: PathLike | None = None,
) -> WebshopEnv:  # fmt: skip
    """Creates a WebShop environment.

    `config.data` is a folder of the official files (items_shuffle.json, items_ins_v2.json, items_human_ins.json, or
    those of the 1,000-product set with `_1000` in their names); None: the folder in WEBSHOP_DATA. products,
    attributes, human_goals: single files instead; `human_goals` also selects human goals. Without any of these a
    catalogue is generated. search: a function from a query to asins that replaces the search engine. cache_dir: the
    folder of the product store and the index (default: paw-fast in the XDG cache folder). Raises `UserError`.
    """
    data, num_products = config.data, config.num_products
    goals = "human" if human_goals is not None else config.goals
    if config.mode not in MODES:
        raise UserError(f"webshop has no mode {config.mode!r}: choose {' or '.join(MODES)}")
    if goals not in goal_rules.KINDS:
        raise UserError(f"webshop has no goals {goals!r}: choose {' or '.join(goal_rules.KINDS)}")
    needed = ("rapidfuzz", *(() if search else ("bm25s", "Stemmer")))
    generated = False
    if products is not None:
        require(*needed, "spacy", SPACY_MODEL)
        others = [None if one is None else existing(one) for one in (attributes, human_goals)]
        files = (existing(products), others[0], others[1])
    else:
        folder = data or os.environ.get("WEBSHOP_DATA") or None
        generated = folder is None
        require(*needed, *(() if generated else ("spacy", SPACY_MODEL)))
        if folder is None:
            if goals == "human":
                raise UserError(
                    "generated products have no human goals: name the official files (--env.data or WEBSHOP_DATA), or "
                    "take synthetic goals"
                )
            folder = generated_folder(num_products or NUM_GENERATED, config.game_seed, cache_folder(cache_dir))
        files = find_files(Path(folder).expanduser(), num_products, goals == "human")
    store = open_store(*files, num_products, cache_folder(cache_dir), index=search is None)
    catalogue = Catalogue(
        store, Goals(store, goals, config.goal_seed), search or SearchEngine(store.folder / "index"), show_attributes,
        hold_out_products=generated,
    )  # fmt: skip
    return WebshopEnv(catalogue, config.mode, config.max_steps, config.brief_results)


def task_content(env: WebshopEnv, task: Task) -> str:
    """What makes a goal what it is: the goal, whose weight depends on the catalogue, and the product it is about."""
    catalogue = env.catalogue
    goal = catalogue.goals[task.info["goal"]]
    both = [dataclasses.asdict(one) for one in (goal, catalogue.product(goal.asin))]
    return json.dumps(both, sort_keys=True)


def generator(config: WebshopConfig) -> str:
    """Version of the generated catalogue; empty for a catalogue from files."""
    is_official = config.data is not None or bool(os.environ.get("WEBSHOP_DATA"))
    return "" if is_official else f"generated catalogue, version {generate.VERSION}, goals version {goal_rules.VERSION}"


def check_installed(config: WebshopConfig) -> None:
    """Raises `UserError` if a package or a data file that the settings need is missing."""
    folder = config.data or os.environ.get("WEBSHOP_DATA") or None
    require("rapidfuzz", "bm25s", "Stemmer", *(() if folder is None else ("spacy", SPACY_MODEL)))
    if folder is not None:
        find_files(Path(folder).expanduser(), config.num_products, config.goals == "human")


def generated_folder(num_products: int, seed: int, cache: Path) -> Path:
    """Returns a folder of generated files, created at the first use. WEBSHOP_DATA may be set to it."""
    folder = cache / "webshop" / f"generated-{generate.VERSION}-{seed}-{num_products}"
    return stores.cached(folder, lambda staging: generate.write_catalogue(staging, num_products, seed))


def existing(given: PathLike) -> Path:
    """Returns the path of a file. Raises `UserError` if it does not exist."""
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(f"no WebShop file at {path}")
    return path


def find_files(folder: Path, num_products: int | None, human: bool) -> tuple[Path, Path | None, Path | None]:
    """Finds the files of products, attributes and human instructions in a folder of official files.

    Selects the full set if it exists, or the small set if it exists and at most 1,000 products are requested. Raises
    `UserError` naming the missing file.
    """
    if not folder.is_dir():
        raise UserError(
            f"no WebShop data at {folder}: --env.data or WEBSHOP_DATA should name the folder that holds "
            f"{_PRODUCTS}.json or {_PRODUCTS}_{SMALL}.json"
        )
    small = num_products is not None and num_products <= SMALL
    suffixes = (f"_{SMALL}", "") if small else ("", f"_{SMALL}")
    suffix = next((s for s in suffixes if (folder / f"{_PRODUCTS}{s}.json").is_file()), None)
    if suffix is None:
        raise UserError(f"no WebShop data in {folder}: neither {_PRODUCTS}.json nor {_PRODUCTS}_{SMALL}.json is there")
    attributes, people = folder / f"{_ATTRIBUTES}{suffix}.json", folder / f"{_HUMAN}.json"
    for path, needed in ((attributes, True), (people, human)):
        if needed and not path.is_file():
            raise UserError(f"{path} is missing: it belongs to {_PRODUCTS}{suffix}.json")
    return folder / f"{_PRODUCTS}{suffix}.json", attributes, people if human else None


def open_store(
    products: Path, attributes: Path | None, human: Path | None, num_products: int | None, cache: Path, index: bool
) -> ProductStore:
    """Opens the product store of a catalogue's files, which is built at the first use and when a file has changed."""

    def build(folder: Path) -> None:
        report = CatalogueReport()
        stores.write_products(
            folder, read_products(products, Annotations(attributes, human), num_products, report), report
        )
        if index:
            build_index(ProductStore(folder), folder / "index", str(products))

    mark = hashlib.sha256(repr((stores.VERSION, num_products, index)).encode())
    for path in (products, attributes, human):
        if path is not None:
            stat = path.stat()
            mark.update(repr((str(path.resolve()), stat.st_size, stat.st_mtime_ns)).encode())
    store = ProductStore(stores.cached(cache / "webshop" / f"{products.stem}-{mark.hexdigest()[:16]}", build))
    for line in store.report.lines():
        _LOG.warning("%s: %s", products, line)
    return store


def make_expert(config: WebshopConfig, seed: int = 0, careful: bool = False) -> Shopper:
    """Creates the expert; with early answers as in `config.expert`, unless it is `careful`."""
    expert = ShopperConfig() if careful else config.expert
    return Shopper(expert.early_answer_prob, random.Random(f"paw-fast shopper {seed}"), share=expert.early_answer_share)
