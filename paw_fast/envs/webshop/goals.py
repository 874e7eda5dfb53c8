"""Generates WebShop's goals: sampled prices, price limits and instructions, in the reference's order for a seed.

As in the reference, `random.Random(seed)` draws the prices of the products in order and then the price limits, and a
new `random.Random(seed)` shuffles the goals. Nothing depends on the worker process, so that held-out goals stay out of
training wherever episodes run. Goals are created on access.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paw_fast.envs.webshop.product_store import ProductStore, cache_errors, cached
from paw_fast.envs.webshop.records import Goal, Product
from paw_fast.errors import UserError

NO_LIMIT = 1_000_000.0
_LIMITS = [10.0 * i for i in range(1, 100)]
_MAX_GOALS = 50_000_000
VERSION = 1

KINDS = ("synthetic", "human")


def sample_prices(price_ranges: np.ndarray, rng: random.Random) -> np.ndarray:
    """One price per product in dollars, [P] float64: its fixed price, or drawn uniformly from its range, in order.

    price_ranges [P, 2]: both ends of the range; the second is NaN for a fixed price.
    """
    prices = np.array(price_ranges[:, 0], dtype=np.float64)
    for row in np.flatnonzero(~np.isnan(price_ranges[:, 1])):
        prices[row] = rng.uniform(float(price_ranges[row, 0]), float(price_ranges[row, 1]))
    return prices


def sample_limit(price: float, rng: random.Random) -> float:
    """A price limit in dollars: the larger of two draws from the first four multiples of ten (up to 990) above `price`.

    Returns NO_LIMIT without drawing if fewer than two multiples lie above it.
    """
    first = int(np.searchsorted(_LIMITS, price, side="right"))
    above = _LIMITS[first : first + 4]
    return max(rng.sample(above, 2)) if len(above) >= 2 else NO_LIMIT


def num_combinations(product: Product) -> int:
    """The number of synthetic goals of a product with an instruction: one for each combination of option values."""
    total = 1
    for values in product.options.values():
        total *= len(values)
    return total


@dataclass(frozen=True)
class GoalTable:
    """All goals of a catalogue in arrays. A source is a product with an instruction, or one human instruction.

    rows [S], parts [S]   row of the source's product, and for human goals the index of its instruction
    starts [S+1]          before the shuffle, the goals of source s have the indices starts[s] to starts[s+1] - 1
    limits [S]            price limit in dollars
    order [G]             index before the shuffle of each goal
    prices [P]            sampled price of each product in dollars

    S sources, G goals, P products.
    """

    rows: np.ndarray
    parts: np.ndarray
    starts: np.ndarray
    limits: np.ndarray
    order: np.ndarray
    prices: np.ndarray
    attribute_counts: Counter[str]


def build_table(product_store: ProductStore, kind: str, seed: int) -> GoalTable:
    """Samples prices and limits, and shuffles the goals. Raises `UserError` if there are no goals of that kind."""
    rng = random.Random(seed)
    prices = sample_prices(np.asarray(product_store.price_ranges), rng)
    rows, parts, starts, limits, counts = array("q"), array("q"), array("q", [0]), array("d"), Counter()

    def add(row: int, part: int, number: int, attributes: Sequence[str]) -> None:
        rows.append(row)
        parts.append(part)
        starts.append(starts[-1] + number)
        limits.append(sample_limit(float(prices[row]), rng))
        for attribute in attributes:
            counts[attribute] += number

    for row, product in enumerate(product_store):
        if kind == "human":
            for part, one in enumerate(product.human):
                if one.attributes:
                    add(row, part, 1, one.attributes)
        elif product.instruction is not None:
            add(row, 0, num_combinations(product), product.instruction_attributes)
        if starts[-1] > _MAX_GOALS:
            raise UserError(
                f"more than {_MAX_GOALS} {kind} goals: use fewer products (--env.num-products) or human goals"
            )
    if not starts[-1]:
        file = "items_human_ins" if kind == "human" else "items_ins_v2"
        raise UserError(f"no {kind} goals: the file {file} has no entry for any of the {len(product_store)} products")
    order = array("q", range(starts[-1]))
    random.Random(seed).shuffle(order)
    whole = (np.array(rows), np.array(parts), np.array(starts), np.array(limits), np.array(order))
    return GoalTable(*whole, prices, counts)


def cached_table(product_store: ProductStore, kind: str, seed: int) -> GoalTable:
    """Calls `build_table`, which takes a minute on the full catalogue, and caches it in the product store's folder."""
    if kind not in KINDS:
        raise UserError(f"webshop has no goals {kind!r}: choose {' or '.join(KINDS)}")
    made: list[GoalTable] = []

    def build(folder: Path) -> None:
        table = build_table(product_store, kind, seed)
        made.append(table)
        names, numbers = list(table.attribute_counts), list(table.attribute_counts.values())
        for field in ("rows", "parts", "starts", "limits", "order", "prices"):
            np.save(folder / f"{field}.npy", getattr(table, field))
        np.savez(folder / "counts.npz", names=np.array(names, dtype=str), numbers=np.array(numbers, dtype=np.int64))

    folder = cached(product_store.folder / f"goals-{VERSION}-{kind}-{seed}", build)
    if made:
        return made[0]
    with cache_errors(folder):
        arrays = {
            field: np.load(folder / f"{field}.npy", mmap_mode="r")
            for field in ("rows", "parts", "starts", "limits", "order", "prices")
        }
        counts = np.load(folder / "counts.npz")
    numbers = zip(counts["names"].tolist(), counts["numbers"].tolist(), strict=True)
    return GoalTable(**arrays, attribute_counts=Counter(dict(numbers)))


class Goals(Sequence[Goal]):
    """The goals of a catalogue in shuffled order, created on access."""

    def __init__(self, product_store: ProductStore, kind: str, seed: int) -> None:
        self.kind, self.seed, self._product_store = kind, seed, product_store
        self._table = cached_table(product_store, kind, seed)

    @property
    def prices(self) -> np.ndarray:
        """The sampled price of each product in dollars, [P]."""
        return self._table.prices

    def __len__(self) -> int:
        return len(self._table.order)

    def __getitem__(self, index: int) -> Goal:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"goal {index} of {len(self)}")
        t = self._table
        place = int(t.order[index])
        source = int(np.searchsorted(t.starts, place, side="right")) - 1
        product = self._product_store[int(t.rows[source])]
        limit = float(t.limits[source])
        if self.kind == "human":
            one = product.human[int(t.parts[source])]
            text, attributes, options, weight = one.instruction.strip("."), one.attributes, one.options, 1.0
        else:
            options = _combination(product, place - int(t.starts[source]))
            shown = ", and ".join(f"{name}: {value}" for name, value in options.items())
            text = (product.instruction or "") + (f" with {shown}" if shown else "")
            attributes = product.instruction_attributes
            weight = sum(1.0 / t.attribute_counts[a] for a in attributes) / len(attributes)
        if limit < NO_LIMIT:
            text += f", and price lower than {limit:.2f} dollars"
        return Goal(
            product.asin, text, attributes, limit, options, product.category, product.query, product.title,
            product.product_category, weight, product.nouns,
        )  # fmt: skip

    def rows(self, indices: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The row of each goal's product."""
        t = self._table
        return np.asarray(t.rows)[np.searchsorted(t.starts, np.asarray(t.order)[indices], side="right") - 1]

    def exclude_held_out(self, indices: np.ndarray, held_out: np.ndarray, whole_products: bool) -> np.ndarray:
        """`indices` without the goals that equal one of the goals `held_out`.

        A product that lists an option value twice has the same goal twice. With `whole_products`, all goals of the
        products of `held_out` are excluded.
        """
        shared = np.isin(self.rows(indices), np.unique(self.rows(held_out)))
        if whole_products:
            return indices[~shared]
        taken = {_goal_key(self[int(i)]) for i in held_out}
        again = np.array([i for i in indices[shared] if _goal_key(self[int(i)]) in taken], dtype=np.int64)
        return indices[~np.isin(indices, again)]


def _goal_key(goal: Goal) -> tuple:
    options = tuple(sorted(goal.options.items())) if isinstance(goal.options, dict) else goal.options
    return goal.asin, goal.instruction_text, goal.attributes, options


def _combination(product: Product, number: int) -> dict[str, str]:
    """The `number`-th combination of option values, in lexicographic order of the sorted option names."""
    chosen: dict[str, str] = {}
    for name in reversed(sorted(product.options)):
        values = product.options[name]
        number, at = divmod(number, len(values))
        chosen[name] = values[at]
    return {name: chosen[name] for name in sorted(chosen)}
