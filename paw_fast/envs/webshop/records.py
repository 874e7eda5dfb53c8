"""Defines the records of a WebShop catalogue: products, goals, and the report of reading them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

NO_ATTRIBUTES = ("DUMMY_ATTR",)
"""The reference's attributes of a product that the attributes file does not contain."""


def words(text: str) -> tuple[str, ...]:
    """Splits a word list written as one string."""
    return tuple(text.split())


@dataclass(frozen=True)
class HumanInstruction:
    """One entry of items_human_ins.json: an instruction written by a person.

    >>> HumanInstruction("i need a red mug", ("dishwasher safe",), ("red",)).options
    ('red',)
    """

    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Product:
    """A product. Read from the product store, rendered by `pages`, scored by `reward`.

    prices: one price, or both ends of a range, in dollars. options: the values of each option by name, in the order of
    the page. nouns: nouns of the title if known; None means that the language model finds them.

    >>> Product("B1", "red mug", price_tag="$5.0", prices=(5.0,), options={"size": ("small", "large")}).options
    {'size': ('small', 'large')}
    """

    asin: str
    title: str
    description: str = ""
    bullets: tuple[str, ...] = ()
    price_tag: str = "$100.0"
    prices: tuple[float, ...] = (100.0,)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    attributes: tuple[str, ...] = NO_ATTRIBUTES
    category: str = ""
    query: str = ""
    product_category: str = ""
    instruction: str | None = None
    instruction_attributes: tuple[str, ...] = ()
    human: tuple[HumanInstruction, ...] = ()
    nouns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Goal:
    """What an episode asks to buy. `options` is a dict for synthetic goals and a tuple of values for human ones.

    `price_upper` is in dollars. `weight` is the reference's sampling weight: higher for rare attributes, 1 for human
    goals. `name`, `query`, `category` and `product_category` are those of the product the goal was derived from.

    >>> Goal("B1", "red mug, and price lower than 20.00 dollars", ("dishwasher safe",), 20.0, {"size": "large"}).asin
    'B1'
    """

    asin: str
    instruction_text: str
    attributes: tuple[str, ...]
    price_upper: float
    options: Mapping[str, str] | tuple[str, ...]
    category: str = ""
    query: str = ""
    name: str = ""
    product_category: str = ""
    weight: float = 1.0
    nouns: tuple[str, ...] | None = None


@dataclass
class CatalogueReport:
    """How many records of a catalogue's files were read and accepted, and the reasons why others were not.

    `problems` counts records by reason; `examples` names the first record of each reason.

    >>> report = CatalogueReport()
    >>> report.add("no name", 3, "B1")
    >>> report.lines()
    ['1 record with no name (first: record 3, B1)']
    """

    num_records: int = 0
    num_products: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, record: int, asin: object) -> None:
        """Counts one record with a problem."""
        self.problems[reason] += 1
        self.examples.setdefault(reason, f"record {record}, {asin}")

    def lines(self) -> list[str]:
        """One line per reason."""
        return [
            f"{n} {'record' if n == 1 else 'records'} with {why} (first: {self.examples[why]})"
            for why, n in sorted(self.problems.items())
        ]
