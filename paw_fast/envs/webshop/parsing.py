"""Parses WebShop's JSON files record by record in bounded memory, and cleans products as the reference does.

The product file of the full set is an array of several gigabytes, so it is never decoded as a whole.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from paw_fast.envs.json_files import SURROGATE_REPLACED, may_contain_surrogates, replace_surrogates_in
from paw_fast.envs.webshop.records import NO_ATTRIBUTES, CatalogueReport, HumanInstruction, Product
from paw_fast.errors import UserError

_CHUNK = 1 << 22
_MAX_RECORD = 1 << 26
_SPACE = re.compile(r"[\s,]*")
_NOT_PRICE = re.compile(r"[^\d.]")
_REQUIRED = ("asin", "name", "full_description", "small_description", "product_category", "category", "query")


class _Stream:
    """Decodes JSON values one after the other from a text file, through a buffer that grows as needed."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._buffer, self._at, self._ended, self.number = "", 0, False, 0
        self.replaced = False
        self._decoder = json.JSONDecoder()

    def _grow(self) -> None:
        try:
            more = self._file.read(max(_CHUNK, len(self._buffer) - self._at))
        except UnicodeDecodeError as error:
            raise UserError(f"{self._path}: not UTF-8 text (after record {self.number})") from error
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        self._ended = not more

    def peek(self) -> str:
        """The next character that is neither white space nor a comma; "" at the end of the file."""
        while True:
            found = _SPACE.match(self._buffer, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._grow()

    def skip(self, expected: str, what: str) -> None:
        """Consumes one character. Raises `UserError` if it is not the expected one."""
        if self.peek() != expected:
            raise UserError(f"{self._path}: expected {what}, found {self.peek()!r} after record {self.number}")
        self._at += 1

    def end(self, what: str) -> None:
        """Consumes the closing bracket. Raises `UserError` if anything follows."""
        self._at += 1
        if more := self.peek():
            raise UserError(f"{self._path}: {more!r} follows the end of {what}, after record {self.number}")

    def value(self) -> Any:
        """Decodes the next value. Raises `UserError` with the record's number if it is not valid JSON."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
                if end < len(self._buffer) or self._ended:
                    clean = (
                        replace_surrogates_in(value) if may_contain_surrogates(self._buffer, self._at, end) else value
                    )
                    self._at, self.replaced = end, self.replaced or clean is not value
                    return clean
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                if self._ended or len(self._buffer) - self._at > _MAX_RECORD:
                    raise UserError(f"{self._path}: record {self.number} is not valid JSON: {reason}") from None
            self._grow()


def iter_array(path: Path) -> Iterator[tuple[Any, bool]]:
    """Yields (element, whether surrogates in it were replaced) for each element of a JSON array.

    Raises `UserError` with the file and the record's number.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            stream = _Stream(file, path)
            stream.skip("[", "a JSON array")
            while stream.peek() != "]":
                if not stream.peek():
                    raise UserError(f"{path}: the file ends inside the array, after record {stream.number}")
                stream.replaced = False
                yield stream.value(), stream.replaced
                stream.number += 1
            stream.end("the array")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def iter_object(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) for each member of a JSON object; surrogates are replaced.

    Raises `UserError` with the file and the record's number.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            stream = _Stream(file, path)
            stream.skip("{", "a JSON object")
            while stream.peek() != "}":
                if not stream.peek():
                    raise UserError(f"{path}: the file ends inside the object, after record {stream.number}")
                key = stream.value()
                stream.skip(":", "a colon")
                yield str(key), stream.value()
                stream.number += 1
            stream.end("the object")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_prices(pricing: object) -> tuple[str, tuple[float, ...], bool]:
    """Parses `$9.99` or `$16.99$26.99` into (price tag, prices in dollars, whether the text is valid).

    An empty text results in $100, as in the reference; so does a text without a number, which crashes the reference.

    >>> read_prices("$1,016.99$26.50")
    ('$1016.99 to $26.5', (1016.99, 26.5), True)
    >>> read_prices("call us")
    ('$100.0', (100.0,), False)
    """
    if not pricing:
        return "$100.0", (100.0,), True
    try:
        prices = tuple(float(_NOT_PRICE.sub("", part)) for part in str(pricing).split("$")[1:])
    except ValueError:
        prices = ()
    if not prices or not all(map(math.isfinite, prices)):
        return "$100.0", (100.0,), False
    if len(prices) == 1:
        return f"${prices[0]}", prices, True
    return f"${prices[0]} to ${prices[1]}", prices[:2], True


def read_options(raw: object) -> dict[str, tuple[str, ...]]:
    """Option values by lower-case name. Raises `ValueError` with the reason for any other format."""
    if not raw:
        return {}
    if not isinstance(raw, dict):
        raise ValueError("customization_options that are not an object")
    options = {}
    for name, contents in raw.items():
        if contents is None:
            continue
        try:
            options[str(name).lower()] = tuple(c["value"].strip().replace("/", " | ").lower() for c in contents)
        except (TypeError, KeyError, AttributeError):
            raise ValueError("an option without values") from None
    return options


def _texts(raw: object, what: str) -> tuple[str, ...]:
    """A list of strings as a tuple. Raises `ValueError` with the reason for anything else."""
    if not isinstance(raw, list) or not all(isinstance(one, str) for one in raw):
        raise ValueError(f"{what} that are not a list of strings")
    return tuple(raw)


def _text(raw: object, what: str) -> str:
    """A string. Raises `ValueError` with the reason for anything else."""
    if not isinstance(raw, str):
        raise ValueError(f"{what} that is not a string")
    return raw


def clean_product(raw: object) -> tuple[Product, bool]:
    """Returns (product, whether its price is valid) for a raw record. Raises `ValueError` with the reason."""
    if not isinstance(raw, dict):
        raise ValueError("a value that is not an object")
    missing = [key for key in _REQUIRED if key not in raw]
    if missing:
        raise ValueError(f"a missing key {missing[0]!r}")
    wrong = [key for key in _REQUIRED if not isinstance(raw[key], str | list if key == "small_description" else str)]
    if wrong:
        raise ValueError(f"{wrong[0]} that is not a string")
    bullets = raw["small_description"]
    tag, prices, readable = read_prices(raw.get("pricing"))
    product = Product(
        asin=raw["asin"], title=raw["name"], description=raw["full_description"],
        bullets=tuple(map(str, bullets)) if isinstance(bullets, list) else (bullets,),
        price_tag=tag, prices=prices, options=read_options(raw.get("customization_options")),
        category=raw["category"], query=raw["query"].lower().strip(), product_category=raw["product_category"],
        nouns=_texts(raw["title_nouns"], "title_nouns") if "title_nouns" in raw else None,
    )  # fmt: skip
    return product, readable


class Annotations:
    """The contents of the attributes file and of the human instructions by asin, held as compact JSON."""

    def __init__(self, attributes: Path | None, human: Path | None) -> None:
        self._attributes = {k: json.dumps(v).encode() for k, v in iter_object(attributes)} if attributes else {}
        self._human = {k: json.dumps(v).encode() for k, v in iter_object(human)} if human else {}

    def add(self, product: Product) -> Product:
        """The product with its attributes and instructions. Raises `ValueError` if these have an invalid format."""
        raw = json.loads(self._attributes.get(product.asin, b"{}")) or {}
        human = json.loads(self._human.get(product.asin, b"[]")) or []
        try:
            instruction = raw.get("instruction")
            return replace(
                product,
                attributes=_texts(raw["attributes"], "attributes") if "attributes" in raw else NO_ATTRIBUTES,
                instruction=_text(instruction, "an instruction") if instruction is not None else None,
                instruction_attributes=_texts(raw.get("instruction_attributes") or [], "instruction_attributes"),
                human=tuple(
                    HumanInstruction(
                        _text(one["instruction"], "an instruction"),
                        _texts(one["instruction_attributes"], "instruction_attributes"),
                        _texts(one["instruction_options"], "instruction_options"),
                    )
                    for one in human
                ),
            )
        except (AttributeError, TypeError, KeyError):
            raise ValueError("attributes or instructions in an invalid format") from None


def read_products(
    products: Path, annotations: Annotations, num_products: int | None, report: CatalogueReport
) -> Iterator[Product]:
    """Yields the valid products in the order of the file, and counts skipped records by reason in `report`.

    As in the reference, only the first `num_products` records are read, and records are skipped whose asin is `nan`,
    longer than 10 characters, or a duplicate.
    """
    seen: set[str] = set()
    for number, (raw, replaced) in enumerate(iter_array(products)):
        if num_products is not None and number >= num_products:
            break
        report.num_records += 1
        asin = raw.get("asin", "no asin") if isinstance(raw, dict) else "no asin"
        try:
            product, readable = clean_product(raw)
            if product.asin == "nan" or len(product.asin) > 10 or not product.asin:
                raise ValueError("an asin that is nan or longer than 10 characters")
            if product.asin in seen:
                raise ValueError("a duplicate asin")
            product = annotations.add(product)
        except ValueError as why:
            report.add(str(why), number, asin)
            continue
        if replaced:
            report.add(SURROGATE_REPLACED, number, asin)
        if not readable:
            report.add("an invalid price (replaced by $100)", number, asin)
        if not all(product.options.values()):
            report.add("an option without values (the product has no goals)", number, asin)
        if product.instruction is not None and not product.instruction_attributes:
            report.add("an instruction without attributes (the product has no goals)", number, asin)
            product = replace(product, instruction=None)
        seen.add(product.asin)
        report.num_products += 1
        yield product
