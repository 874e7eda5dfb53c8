"""Renders WebShop's pages as text. A page is a list of nodes in the order of the reference's HTML.

`text` joins the nodes' texts with ` [SEP] `; `text_rich` writes one node per line and marks buttons and options.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from paw_fast.envs.webshop.records import Goal, Product

SEPARATOR = " [SEP] "
SEARCH, BACK, PREVIOUS, NEXT, BUY = "Search", "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews", "Attributes")
PAGE_SIZE = 10


@dataclass(frozen=True)
class Node:
    """An element of a page. The kinds `button`, `link` (a product's asin) and `option` can be clicked.

    >>> Node("Buy Now", "button").kind
    'button'
    """

    text: str
    kind: Literal["text", "button", "link", "option"] = "text"


@dataclass(frozen=True)
class Page:
    """A page. `address` is the end of its URL in the reference, which determines what `text_rich` marks as clicked.

    >>> Page((Node("WebShop"),)).clickables()
    []
    """

    nodes: tuple[Node, ...]
    has_search_bar: bool = False
    address: str = ""
    visited: frozenset[str] = frozenset()

    def clickables(self) -> list[str]:
        """The clickable texts in lower case, without duplicates: buttons, then products, then options."""
        found: dict[str, None] = {}
        for kind in ("button", "link", "option"):
            for node in self.nodes:
                if node.kind == kind:
                    found[node.text if kind == "option" else node.text.lower()] = None
        return list(found)

    def text(self) -> str:
        """The `text` form."""
        return SEPARATOR.join(node.text.strip() for node in self.nodes if node.text)

    def brief(self, num_products: int) -> str:
        """A short form for small models, without the instruction and the buttons.

        Products and options are written as the commands that select them; only the first `num_products` products that
        were not visited are listed.
        """
        marks = [i for i, node in enumerate(self.nodes) if node.text.strip() == "Instruction:"]
        parts, skips, left = [], False, num_products
        for node in self.nodes[marks[0] + 2 if marks else 0 :]:
            if node.kind == "link":
                skips = left == 0 or node.text in self.visited
                left -= not skips
            if skips or node.kind == "button" or not node.text:
                continue
            chosen = node.kind in ("link", "option")
            parts.append(f"click[{node.text.lower()}]" if chosen else node.text.strip())
        return " ".join(parts)

    def text_rich(self) -> str:
        """The `text_rich` form."""
        clicked, lines = "", []
        for node in self.nodes:
            if not node.text:
                continue
            if node.kind == "button":
                lines.append(f"[button] {node.text} [button_]")
            elif node.kind == "option" and f'"{node.text}"' in self.address:
                lines.append(f"  [clicked button] {node.text} [clicked button_]")
                clicked = f"You have clicked {node.text}.\n" + clicked
            elif node.kind == "option":
                lines.append(f"  [button] {node.text} [button_]")
            elif node.kind == "link":
                mark = "clicked button" if node.text in self.visited else "button"
                lines.append(f"\n[{mark}] {node.text} [{mark}_]")
            else:
                lines.append(node.text)
        return clicked + "".join(f"{line}\n" for line in lines)


def _header(goal: Goal, *buttons: str) -> list[Node]:
    return [Node("Instruction:"), Node(goal.instruction_text), *(Node(text, "button") for text in buttons)]


def start_page(goal: Goal) -> Page:
    """The page at the start of an episode, to which `Back to Search` returns."""
    nodes = (Node("WebShop"), Node("Instruction: "), Node(goal.instruction_text), Node(SEARCH, "button"))
    return Page(nodes, has_search_bar=True)


def results_page(
    goal: Goal, products: Iterable[Product], number: int, total: int, visited: Collection[str] = ()
) -> Page:
    """A page of search results; it always has a Next button, and pages past the last result are empty."""
    nodes = [*_header(goal, BACK), Node(f"Page {number} (Total results: {total})")]
    if number > 1:
        nodes.append(Node(PREVIOUS, "button"))
    nodes.append(Node(NEXT, "button"))
    for product in products:
        nodes += [Node(product.asin, "link"), Node(product.title), Node(product.price_tag)]
    return Page(tuple(nodes), visited=frozenset(visited))


def item_page(
    goal: Goal, product: Product, chosen: Mapping[str, str], query: str, number: int, show_attributes: bool = False
) -> Page:
    """A product's page with its options."""
    nodes = _header(goal, BACK, PREVIOUS)
    for name, values in product.options.items():
        nodes += [Node(name), *(Node(value, "option") for value in values)]
    nodes += [Node(product.title), Node(f"Price: {product.price_tag}"), Node("Rating: N.A.")]
    sub_pages = SUB_PAGES if show_attributes else SUB_PAGES[:-1]
    nodes += [Node(text, "button") for text in (*sub_pages, BUY)]
    address = f"{product.asin}/{query.replace(' ', '+')}/{number}/{json.dumps(dict(chosen))}"
    return Page(tuple(nodes), address=address)


def sub_page(goal: Goal, product: Product, name: str) -> Page:
    """A product's description, features, reviews (always empty: the data has none) or attributes."""
    texts: Sequence[str] = ()
    if name == "Description":
        texts = (product.description,)
    elif name == "Features":
        texts = [f" {bullet}" for bullet in product.bullets]
    elif name == "Attributes":
        texts = (
            *(f" {attribute}" for attribute in product.attributes),
            product.category, product.query, product.product_category,
        )  # fmt: skip
    return Page((*_header(goal, BACK, PREVIOUS), *map(Node, texts)))


def template_json(options: Mapping[str, str]) -> str:
    """JSON as written by the `tojson` filter of the reference's template: sorted keys, HTML characters escaped.

    >>> template_json({"size": "s", "color": "salt & pepper"})
    '{"color": "salt \\\\u0026 pepper", "size": "s"}'
    """
    text = json.dumps(dict(options), sort_keys=True)
    for sign in "<>&'":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def done_page(asin: str, chosen: Mapping[str, str], reward: float) -> Page:
    """The page that is shown after buying."""
    texts = (
        "Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)", "Purchased",
        "asin", asin, "options", template_json(chosen), "attrs", "None", "category", "None", "query", "None",
        "product category", "None", "Target", "asin", "options", "attrs", "price upper", "instuction text", "category",
        "product category", "query", "Goal ", "None", "Reward", "Your score (min 0.0, max 1.0)", str(reward),
        "Reward Details ", "None",
    )  # fmt: skip
    return Page(tuple(map(Node, texts)))
