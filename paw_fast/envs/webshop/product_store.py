"""Stores products on disk as memory-mapped JSON with an offset table, so that a million products need little memory.

FOLDER/products.bin   one JSON list per product, concatenated
FOLDER/offsets.npy    [P+1] start of each product in bytes
FOLDER/asins.npy      [P] 10 bytes each, in catalogue order;  order.npy [P]: the permutation that sorts them
FOLDER/prices.npy     [P, 2] both ends of the price range in dollars (the second is NaN for a fixed price)
FOLDER/index/         files of the search engine
FOLDER/report.json    the `CatalogueReport`, written last
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paw_fast.envs.webshop.records import CatalogueReport, HumanInstruction, Product
from paw_fast.errors import UserError
from paw_fast.runs import stop_signals
from paw_fast.runs.atomic_files import user_errors
from paw_fast.runs.cached_folder import cached_folder

VERSION = 3
"""Part of the cache key: increment it when the format or the cleaning of products changes."""

_HUMAN = [f.name for f in dataclasses.fields(Product)].index("human")
_CACHED_PRODUCTS = 4096


def encode(product: Product) -> bytes:
    """Encodes a product as a JSON list of its fields."""
    fields = [getattr(product, f.name) for f in dataclasses.fields(product)]
    return json.dumps(fields, default=dataclasses.astuple, separators=(",", ":"), ensure_ascii=False).encode()


def decode(data: bytes) -> Product:
    """Decodes a product encoded by `encode`."""
    fields: list[Any] = [tuple(one) if isinstance(one, list) else one for one in json.loads(data)]
    product = Product(*fields)
    return dataclasses.replace(
        product,
        options={name: tuple(values) for name, values in product.options.items()},
        human=tuple(HumanInstruction(text, tuple(a), tuple(o)) for text, a, o in fields[_HUMAN]),
    )


@contextlib.contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Converts the exceptions that numpy and JSON raise for truncated or missing files into one `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, EOFError, FileNotFoundError, zipfile.BadZipFile) as error:
        raise UserError(f"the cache {folder} is damaged ({error}): delete that folder to have it rebuilt") from error


class ProductStore:
    """Products by row (position in the catalogue) or by asin. Read-only, shared by all episodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with user_errors("read the product store", folder), cache_errors(folder):
            with (folder / "products.bin").open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
            self._asins = np.load(folder / "asins.npy", mmap_mode="r")
            order = np.load(folder / "order.npy", mmap_mode="r")
            self.price_ranges = np.load(folder / "prices.npy", mmap_mode="r")  # [P, 2]
            raw = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            if len(self._data) != self._offsets[-1]:
                raise ValueError(f"products.bin has {len(self._data)} bytes, expected {self._offsets[-1]}")
        self._order, self._sorted = order, np.asarray(self._asins)[order]
        self.report = CatalogueReport(
            raw["num_records"], raw["num_products"], Counter(raw["problems"]), dict(raw["examples"])
        )
        self._cache: OrderedDict[int, Product] = OrderedDict()

    def __len__(self) -> int:
        return len(self._asins)

    def __getitem__(self, row: int) -> Product:
        product = self._cache.get(row)
        if product is None:
            if not 0 <= row < len(self):
                raise IndexError(f"row {row} of {len(self)} products")
            product = decode(self._data[int(self._offsets[row]) : int(self._offsets[row + 1])])
            self._cache[row] = product
            if len(self._cache) > _CACHED_PRODUCTS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(row)
        return product

    def __iter__(self) -> Iterator[Product]:
        for row in range(len(self)):
            yield decode(self._data[int(self._offsets[row]) : int(self._offsets[row + 1])])

    def asin(self, row: int) -> str:
        """The asin of a row, without decoding the product."""
        return self._asins[row].decode()

    def row(self, asin: str) -> int | None:
        """The row of an asin; None if it is not in the catalogue."""
        key = asin.encode("utf-8", "replace")
        at = int(np.searchsorted(self._sorted, key))
        return int(self._order[at]) if at < len(self._sorted) and self._sorted[at] == key else None


def write_products(folder: Path, products: Iterable[Product], report: CatalogueReport) -> None:
    """Writes the files of a product store. Raises `UserError` if there are no products."""
    offsets, asins, prices = [0], [], []
    with (folder / "products.bin").open("wb") as file:
        for product in products:
            stop_signals.check()
            offsets.append(offsets[-1] + file.write(encode(product)))
            asins.append(product.asin.encode("utf-8", "replace"))
            prices.append((*product.prices, np.nan)[:2])
    if not asins:
        problems = "; ".join(report.lines())
        raise UserError(
            f"none of the {report.num_records} records is a valid product{': ' + problems if problems else ''}"
        )
    names = np.array(asins)
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    np.save(folder / "asins.npy", names)
    np.save(folder / "order.npy", np.argsort(names, kind="stable"))
    np.save(folder / "prices.npy", np.array(prices, dtype=np.float64))
    report_json = {
        "num_records": report.num_records, "num_products": report.num_products,
        "problems": dict(report.problems), "examples": report.examples,
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report_json), encoding="utf-8")


def cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """Returns `folder`, made by `build` unless it is there and as it was made. Raises `UserError` when the cache cannot
    be written."""
    with user_errors("write the catalogue's cache", folder, "set XDG_CACHE_HOME to a folder that can be written"):
        return cached_folder(folder, build, "files of a WebShop catalogue", folder.with_name(f".{folder.name}.lock"))
