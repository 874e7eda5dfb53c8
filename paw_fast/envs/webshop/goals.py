"""WebShop's goals: prices, price limits and instructions, in the reference's order for a seed, made when asked for.

A catalogue has one seed for all: `random.Random(seed)` draws the prices of the products in their order and then the
price limits; a fresh `random.Random(seed)` shuffles the goals. Nothing depends on a worker, so the goals that are
held out for validation stay out of training wherever episodes are played.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paw_fast.envs.webshop.product_store import ProductStore, cached, undamaged
from paw_fast.envs.webshop.records import Goal, Product
from paw_fast.errors import UserError

NO_LIMIT = 1_000_000.0
_LIMITS = [10.0 * i for i in range(1, 100)]
_MAX_GOALS = 50_000_000
VERSION = 1

KINDS = ("synthetic", "human")


def sample_prices(price_ranges: np.ndarray, rng: random.Random) -> np.ndarray:
    """One price for each product, [P] float64: its own, or drawn from its range in the catalogue's order.

    price_ranges [P, 2]: the price, or both ends of a range; the second NaN where there is one price.
    """
    prices = np.array(price_ranges[:, 0], dtype=np.float64)
    for row in np.flatnonzero(~np.isnan(price_ranges[:, 1])):
        prices[row] = rng.uniform(float(price_ranges[row, 0]), float(price_ranges[row, 1]))
    return prices


def sample_limit(price: float, rng: random.Random) -> float:
    """A price limit: the larger of two of the first four multiples of ten (10 to 990) above the price.

    NO_LIMIT, and nothing drawn, where fewer than two lie above it.
    """
    first = int(np.searchsorted(_LIMITS, price, side="right"))
    above = _LIMITS[first : first + 4]
    return max(rng.sample(above, 2)) if len(above) >= 2 else NO_LIMIT


def num_combinations(product: Product) -> int:
    """How many synthetic goals a product with an instruction gives: one for each choice of its options."""
    total = 1
    for values in product.options.values():
        total *= len(values)
    return total


@dataclass(frozen=True)
class GoalTable:
    """All goals of a catalogue as numbers. S sources (a product with an instruction, or one human instruction).

    rows [S], parts [S]   the source's product and, for human goals, which of its instructions
    starts [S+1]          the goals of source s, before the shuffle, are starts[s] to starts[s+1]
    limits [S]            price limit
    order [G]             place before the shuffle of every goal
    prices [P]            sampled price of every product
    """

    rows: np.ndarray
    parts: np.ndarray
    starts: np.ndarray
    limits: np.ndarray
    order: np.ndarray
    prices: np.ndarray
    attribute_counts: Counter[str]


def build_table(store: ProductStore, kind: str, seed: int) -> GoalTable:
    """Draws prices and limits and shuffles. Raises `UserError` for a catalogue without goals of that kind."""
    rng = random.Random(seed)
    prices = sample_prices(np.asarray(store.price_ranges), rng)
    rows, parts, starts, limits, counts = array("q"), array("q"), array("q", [0]), array("d"), Counter()

    def add(row: int, part: int, number: int, attributes: Sequence[str]) -> None:
        rows.append(row)
        parts.append(part)
        starts.append(starts[-1] + number)
        limits.append(sample_limit(float(prices[row]), rng))
        for attribute in attributes:
            counts[attribute] += number

    for row, product in enumerate(store):
        if kind == "human":
            for part, one in enumerate(product.human):
                if one.attributes:
                    add(row, part, 1, one.attributes)
        elif product.instruction is not None:
            add(row, 0, num_combinations(product), product.instruction_attributes)
        if starts[-1] > _MAX_GOALS:
            raise UserError(
                f"more than {_MAX_GOALS} {kind} goals: take fewer products (--env.num-products) or human goals"
            )
    if not starts[-1]:
        file = "items_human_ins" if kind == "human" else "items_ins_v2"
        raise UserError(f"no {kind} goal in the catalogue: the file {file} names none of its {len(store)} products")
    order = array("q", range(starts[-1]))
    random.Random(seed).shuffle(order)
    whole = (np.array(rows), np.array(parts), np.array(starts), np.array(limits), np.array(order))
    return GoalTable(*whole, prices, counts)


def cached_table(store: ProductStore, kind: str, seed: int) -> GoalTable:
    """`build_table`, kept beside the store: on the full catalogue the drawing takes a minute."""
    if kind not in KINDS:
        raise UserError(f"webshop has no goals {kind!r}: choose {' or '.join(KINDS)}")
    made: list[GoalTable] = []

    def build(folder: Path) -> None:
        table = build_table(store, kind, seed)
        made.append(table)
        names, numbers = list(table.attribute_counts), list(table.attribute_counts.values())
        for field in ("rows", "parts", "starts", "limits", "order", "prices"):
            np.save(folder / f"{field}.npy", getattr(table, field))
        np.savez(folder / "counts.npz", names=np.array(names, dtype=str), numbers=np.array(numbers, dtype=np.int64))

    folder = cached(store.folder / f"goals-{VERSION}-{kind}-{seed}", build)
    if made:
        return made[0]
    with undamaged(folder):
        arrays = {
            field: np.load(folder / f"{field}.npy", mmap_mode="r")
            for field in ("rows", "parts", "starts", "limits", "order", "prices")
        }
        counts = np.load(folder / "counts.npz")
    numbers = zip(counts["names"].tolist(), counts["numbers"].tolist(), strict=True)
    return GoalTable(**arrays, attribute_counts=Counter(dict(numbers)))


class Goals(Sequence[Goal]):
    """The goals of a catalogue in their shuffled order, each made when it is asked for."""

    def __init__(self, store: ProductStore, kind: str, seed: int) -> None:
        self.kind, self.seed, self._store = kind, seed, store
        self._table = cached_table(store, kind, seed)

    @property
    def prices(self) -> np.ndarray:
        """[P] the price that every product is sold at."""
        return self._table.prices

    def __len__(self) -> int:
        return len(self._table.order)

    def __getitem__(self, index: int) -> Goal:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"goal {index} of {len(self)}")
        t = self._table
        place = int(t.order[index])
        source = int(np.searchsorted(t.starts, place, side="right")) - 1
        product = self._store[int(t.rows[source])]
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
        """The product's row of each goal."""
        t = self._table
        return np.asarray(t.rows)[np.searchsorted(t.starts, np.asarray(t.order)[indices], side="right") - 1]

    def without(self, indices: np.ndarray, held_out: np.ndarray, whole_products: bool) -> np.ndarray:
        """`indices` less those goals that are also among `held_out` under another number.

        A product that lists a value twice gives the same goal twice. With `whole_products`, all goals of the
        products of `held_out` are taken out.
        """
        shared = np.isin(self.rows(indices), np.unique(self.rows(held_out)))
        if whole_products:
            return indices[~shared]
        taken = {_identity(self[int(i)]) for i in held_out}
        again = np.array([i for i in indices[shared] if _identity(self[int(i)]) in taken], dtype=np.int64)
        return indices[~np.isin(indices, again)]


def _identity(goal: Goal) -> tuple:
    options = tuple(sorted(goal.options.items())) if isinstance(goal.options, dict) else goal.options
    return goal.asin, goal.instruction_text, goal.attributes, options


def _combination(product: Product, number: int) -> dict[str, str]:
    """The `number`-th choice of options, the names sorted, the last name's values turning fastest."""
    chosen: dict[str, str] = {}
    for name in reversed(sorted(product.options)):
        values = product.options[name]
        number, at = divmod(number, len(values))
        chosen[name] = values[at]
    return {name: chosen[name] for name in sorted(chosen)}
