"""Generates product catalogues in the schema of WebShop's files, so that no download is needed.

A product has a kind (its search term), three attributes that its title and bullets mention, one or two options, and a
price. Its instruction asks for two of the attributes. The nouns of a title are known here, so that no language model
is needed to score a purchase. Every product depends on the seed and its own number only, so that the first N products
of a larger catalogue equal those of a smaller one, except for the width of their asins.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paw_fast.envs.webshop.records import words
from paw_fast.runs import stop_signals

VERSION = 3
"""Part of the cache key: increment it when the generated products change."""

COLORS = words("black white red blue green grey navy brown pink purple yellow orange")
SIZES = ("small", "medium", "large", "x-large", "xx-large")
_SHEETS = words("twin full queen king")
_PACKS = ("pack of 1", "pack of 2", "pack of 4", "pack of 6", "pack of 12")
_SCENTS = words("lavender vanilla citrus coconut rose mint")
_FLAVORS = words("chocolate vanilla strawberry lemon ginger honey")
_LENGTHS = ("3 feet", "6 feet", "10 feet", "15 feet")
_SHOES = tuple(str(n) for n in range(6, 13))

# Category, path of parent categories, attributes, options, price range in dollars, kinds.
_FASHION = ("slim fit", "long sleeve", "machine wash", "quick drying", "button closure", "elastic waist", "hand wash",
            "tumble dry", "relaxed fit", "cotton spandex")  # fmt: skip
_FOOTWEAR = ("rubber sole", "memory foam", "non slip", "arch support", "leather lining", "lace closure", "wide width",
             "steel toe")  # fmt: skip
_BEAUTY = ("cruelty free", "sulfate free", "fragrance free", "long lasting", "sensitive skin", "dry hair", "tea tree",
           "coconut oil", "travel size")  # fmt: skip
_ELECTRONICS = ("fast charging", "gold plated", "high speed", "heavy duty", "noise cancelling", "water resistant",
                "easy carry", "wireless bluetooth")  # fmt: skip
_GARDEN = ("solid wood", "easy clean", "space saving", "eco friendly", "fade resistant", "easy assemble", "king size",
           "living room")  # fmt: skip
_GROCERY = ("gluten free", "sugar free", "non gmo", "dairy free", "low sodium", "plant based", "individually wrapped",
            "ready eat")  # fmt: skip
_DEPARTMENTS: tuple[tuple[str, str, tuple[str, ...], dict[str, tuple[str, ...]], tuple[int, int], tuple[str, ...]], ...]
_DEPARTMENTS = (
    ("fashion", "Clothing, Shoes & Jewelry › Clothing", _FASHION, {"Color": COLORS, "Size": SIZES}, (8, 80),
     ("dress shirts", "polo shirts", "rain jackets", "winter coats", "yoga pants", "denim shorts", "fleece hoodies",
      "evening dresses")),
    ("fashion", "Clothing, Shoes & Jewelry › Shoes", _FOOTWEAR, {"Color": COLORS, "Size": _SHOES}, (20, 120),
     ("hiking boots", "running shoes", "house slippers", "beach sandals")),
    ("beauty", "Beauty & Personal Care › Care", _BEAUTY, {"Scent": _SCENTS, "Size": _PACKS}, (5, 45),
     ("body lotions", "hair masks", "lip balms", "bath salts", "face creams", "shampoo bars")),
    ("electronics", "Electronics › Accessories", _ELECTRONICS, {"Color": COLORS, "Length": _LENGTHS}, (6, 60),
     ("usb cables", "phone chargers", "hdmi adapters", "audio cables")),
    ("electronics", "Electronics › Devices", _ELECTRONICS, {"Color": COLORS}, (25, 250),
     ("desk speakers", "camera cases", "action cameras", "game controllers")),
    ("garden", "Home & Kitchen › Home", _GARDEN, {"Color": COLORS, "Size": _SHEETS}, (15, 180),
     ("bed frames", "window curtains", "throw blankets", "pillow covers")),
    ("garden", "Home & Kitchen › Furniture", _GARDEN, {"Color": COLORS}, (40, 400),
     ("coffee tables", "book shelves", "bar stools", "floor lamps")),
    ("grocery", "Grocery & Gourmet Food › Food", _GROCERY, {"Flavor Name": _FLAVORS, "Size": _PACKS}, (4, 40),
     ("protein bars", "herbal teas", "snack crackers", "baking mixes", "fruit cookies", "nut butters")),
)  # fmt: skip
_KINDS = tuple((kind, department) for department in _DEPARTMENTS for kind in department[5])
_FIRST = words("zel mor tav bri kan dov lum rey fen sol vik nar pel gos hal jun")
_LAST = words("ko ra ven dis lo mar tex na quo bel tor fi")
ASIN_LETTERS = "BXKRT"
"""The letters before the digits of an asin, one for each position."""
_SENTENCES = (
    "Made with care for every day.", "A present that is used.", "Tested by our own team.", "Ships within two days.",
    "Ask us anything about it.",
)  # fmt: skip


def make_record(number: int, seed: int, width: int = 4) -> tuple[dict[str, Any], dict[str, Any]]:
    """Product `number` as its records in the product file and in the attributes file.

    width: the number of digits of asins, which bounds the size of the catalogue.
    """
    rng = random.Random(f"webshop {seed} {number}")
    kind, (category, place, pool, options, (low, high), _) = rng.choice(_KINDS)
    brand = rng.choice(_FIRST) + rng.choice(_LAST)
    attributes = rng.sample(pool, 3)
    price = rng.uniform(low, high)
    pricing = f"${price:.2f}"
    if rng.random() < 0.1:
        pricing += f"${price * rng.uniform(1.1, 1.6):.2f}"
    chosen = {}
    for name, values in options.items():
        taken = set(rng.sample(values, rng.randint(2, min(5, len(values)))))
        chosen[name] = [{"value": value, "image": None} for value in values if value in taken]
    asin = _asin(_permute(number, seed, 10**width), width)
    record = {
        "asin": asin, "name": f"{brand} {' '.join(attributes)} {kind}",
        "full_description": f"{kind} by {brand}. {rng.choice(_SENTENCES)}",
        "small_description": [*attributes, rng.choice(_SENTENCES)], "pricing": pricing,
        "customization_options": chosen, "product_category": f"{place} › {kind.title()}", "category": category,
        "query": kind, "images": [f"generated/{asin}.jpg"], "title_nouns": [brand, *kind.split()],
    }  # fmt: skip
    wanted = sorted(rng.sample(attributes, 2), key=attributes.index)
    annotation = {
        "attributes": attributes, "instruction": f"Find me {', '.join(wanted)} {kind}",
        "instruction_attributes": wanted,
    }  # fmt: skip
    return record, annotation


def _asin(number: int, width: int) -> str:
    """A letter before each digit if that fits in 10 characters, else B and the digits.

    Each position has a distinct letter: a small model quickly learns to copy one of ten tokens at each position, but
    not one of thousands of asins.
    """
    digits = f"{number:0{width}d}"
    return (
        "".join(map("".join, zip(ASIN_LETTERS, digits, strict=False))) if width <= len(ASIN_LETTERS) else "B" + digits
    )


def _permute(number: int, seed: int, size: int) -> int:
    """Permutes 0 to size - 1 (a power of ten), so that asins are unrelated to the order of products."""
    return (number * 7_654_321 + 104_729 * (seed + 1)) % size  # the factor shares no divisor with 10


def make_records(num_products: int, seed: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields the records of all products, as `make_record` returns them."""
    width = max(4, len(str(num_products - 1)))
    return (make_record(number, seed, width) for number in range(num_products))


def write_catalogue(folder: Path, num_products: int, seed: int) -> None:
    """Writes items_shuffle.json and items_ins_v2.json in the format of the official files."""
    with (
        (folder / "items_shuffle.json").open("w", encoding="utf-8") as products,
        (folder / "items_ins_v2.json").open("w", encoding="utf-8") as attributes,
    ):
        for start, (record, annotation) in zip(
            itertools.chain([("[\n", "{\n")], itertools.repeat((",\n", ",\n"))),
            make_records(num_products, seed),
            strict=False,
        ):
            stop_signals.check()
            products.write(start[0] + json.dumps(record, ensure_ascii=False))
            attributes.write(f"{start[1]}{json.dumps(record['asin'])}: {json.dumps(annotation)}")
        products.write("\n]\n")
        attributes.write("\n}\n")
