"""Records of a WebShop catalogue: products, goals, and what went wrong while reading them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

NO_ATTRIBUTES = ("DUMMY_ATTR",)
"""What the reference gives a product that the attributes file does not name."""


def words(text: str) -> tuple[str, ...]:
    """The words of a table written as one text."""
    return tuple(text.split())


@dataclass(frozen=True)
class HumanInstruction:
    """One line of items_human_ins: what a person asked for.

    >>> HumanInstruction("i need a red mug", ("dishwasher safe",), ("red",)).options
    ('red',)
    """

    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Product:
    """A product as the environment uses it. Read from the catalogue's store, shown by `pages`, judged by `reward`.

    prices: none, one, or a range of two, in dollars. options: values of each option by its name, in the page's order.
    nouns: those of the title where a generator knows them; None asks the language model.

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
    """What the shopper wants. `options` is a dict for synthetic goals and a tuple of values for human ones.

    `weight` is the reference's: rare attributes weigh more (1 for human goals). `name`, `query`, `category` and
    `product_category` are those of the product the goal was made from.

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
class ReadingReport:
    """What a catalogue's files held: how many records were taken, and how many were not, and why.

    `problems` counts by reason; `examples` names the first record of each.

    >>> report = ReadingReport()
    >>> report.note("no name", 3, "B1")
    >>> report.lines()
    ['1 with no name (first: record 3, B1)']
    """

    num_records: int = 0
    num_products: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, reason: str, record: int, asin: object) -> None:
        """Counts one record with a problem."""
        self.problems[reason] += 1
        self.examples.setdefault(reason, f"record {record}, {asin}")

    def lines(self) -> list[str]:
        """One line for each kind of problem."""
        return [f"{n} with {why} (first: {self.examples[why]})" for why, n in sorted(self.problems.items())]
