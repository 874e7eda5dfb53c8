"""Tests damaged, incomplete and unusual data files: records are skipped and counted, or the file is rejected."""

import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paw_fast import envs
from paw_fast.envs.webshop.parsing import Annotations, read_options, read_prices, read_products
from paw_fast.envs.webshop.product_store import decode, encode
from paw_fast.envs.webshop.records import CatalogueReport
from paw_fast.errors import UserError


def test_invalid_records_are_counted_and_named(raw, write_catalogue, caplog):
    products = [
        raw("B1"), raw("B1", name="the same again"), raw("nan"), raw("B1234567890"), raw("B2", name="DROP"),
        raw("B3", pricing="call for price"), raw("B4", full_description=7), "no record", {"name": "no asin"},
        raw("B5", customization_options={"Color": [{"image": "x"}]}), raw("B6", customization_options=["Red"]),
        raw("B7", pricing=None), raw("B8", product_category="DROP"),
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING, "paw_fast.envs"):
        env = envs.make("webshop", **write_catalogue(products))
    report = env.catalogue.product_store.report
    assert (report.num_records, report.num_products) == (13, 3)
    assert dict(report.problems) == {
        "a duplicate asin": 1, "an asin that is nan or longer than 10 characters": 2, "a missing key 'name'": 1,
        "an invalid price (replaced by $100)": 1, "full_description that is not a string": 1,
        "a value that is not an object": 1, "a missing key 'asin'": 1, "an option without values": 1,
        "customization_options that are not an object": 1, "a missing key 'product_category'": 1,
    }  # fmt: skip
    assert report.examples["a missing key 'name'"] == "record 4, B2"
    assert "1 record with a missing key 'name' (first: record 4, B2)" in caplog.text
    assert [env.catalogue.product_store.asin(row) for row in range(3)] == ["B1", "B3", "B7"]
    # The report is stored with the products, so that it is logged at every start.
    caplog.clear()
    with caplog.at_level(logging.WARNING, "paw_fast.envs"):
        envs.make("webshop", **write_catalogue(products))
    assert "a missing key 'name'" in caplog.text


def test_invalid_fields_are_counted(raw, write_catalogue):
    surrogate = chr(0xD83D)
    products = [
        raw("B1"), raw("B2", name=f"mug {surrogate}"), raw("B3", title_nouns=5), raw("B4"), raw("B5"),
        raw("B6", customization_options={"Color": []}),
    ]  # fmt: skip
    annotation = {"attributes": ["red"], "instruction": "find me a mug"}
    attributes = {
        "B1": annotation | {"instruction_attributes": ["red"]}, "B2": {}, "B3": {},
        "B4": annotation | {"instruction_attributes": [["red"]]}, "B5": annotation | {"instruction_attributes": [5]},
    }  # fmt: skip
    env = envs.make("webshop", **write_catalogue(products, attributes=attributes))
    report = env.catalogue.product_store.report
    assert dict(report.problems) == {
        "a lone surrogate (replaced by U+FFFD)": 1, "title_nouns that are not a list of strings": 1,
        "instruction_attributes that are not a list of strings": 2,
        "an option without values (the product has no goals)": 1,
    }  # fmt: skip
    assert report.num_products == 3
    assert report.examples["a lone surrogate (replaced by U+FFFD)"] == "record 1, B2"
    assert env.catalogue.product("B2").title == "mug \ufffd"


def test_null_instruction_and_infinite_price(raw, write_catalogue, tmp_path):
    human = tmp_path / "h.json"
    one = {"instruction": None, "instruction_attributes": ["red"], "instruction_options": []}
    human.write_text(json.dumps({"B1": [one], "B2": [one | {"instruction": "a mug."}]}))
    settings = write_catalogue([raw("B1"), raw("B2"), raw("B3", pricing="$" + "9" * 400)])
    env = envs.make("webshop", **settings, human_goals=human)
    assert dict(env.catalogue.product_store.report.problems) == {
        "an instruction that is not a string": 1, "an invalid price (replaced by $100)": 1
    }  # fmt: skip
    assert [goal.instruction_text.split(",")[0] for goal in env.catalogue.goals] == ["a mug"]
    assert env.catalogue.product("B3").prices == (100.0,)


TEXTS = st.text(st.characters(exclude_categories=()), max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
PRODUCT_KEYS = (
    "asin", "name", "full_description", "small_description", "pricing", "customization_options", "product_category",
    "category", "query", "title_nouns",
)  # fmt: skip
ANNOTATION_KEYS = ("attributes", "instruction", "instruction_attributes")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(PRODUCT_KEYS), TEXTS | JSON, max_size=3),
    st.dictionaries(st.sampled_from(ANNOTATION_KEYS), JSON, max_size=2) | JSON,
    JSON | st.lists(st.dictionaries(st.sampled_from(["instruction", "instruction_attributes"]), JSON), max_size=2),
)
def test_any_json_gives_storable_products_or_a_reason(raw, tmp_path_factory, changes, annotation, human):
    folder = tmp_path_factory.getbasetemp()
    files = {"p": [raw("B1") | changes, changes], "a": {"B1": annotation}, "h": {"B1": human}}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    report = CatalogueReport()
    annotations = Annotations(folder / "a.json", folder / "h.json")
    products = list(read_products(folder / "p.json", annotations, None, report))
    assert report.num_products == len(products)
    assert len(products) + report.problems.total() >= 2
    for product in products:
        assert decode(encode(product)) == product


def test_surrogates_and_a_byte_order_mark(raw, write_catalogue, tmp_path):
    surrogate = chr(0xD83D)
    product = raw(
        "B1",
        customization_options={f"Color{surrogate}": [{"value": f"Red{surrogate}"}]},
        full_description="whole \U0001f600",
    )
    annotation = {
        "attributes": [f"red{surrogate}"],
        "instruction": f"find{surrogate}",
        "instruction_attributes": ["red"],
    }
    settings = write_catalogue([product], {"B1": annotation})
    for name in ("p.json", "a.json"):
        (tmp_path / name).write_text((tmp_path / name).read_text(), encoding="utf-8-sig")
    env = envs.make("webshop", **settings)
    found = env.catalogue.product("B1")
    assert found.options == {"color\ufffd": ("red\ufffd",)}
    assert (found.description, found.attributes) == ("whole \U0001f600", ("red\ufffd",))
    assert env.reset(env.tasks("unseen")[0]).task.startswith("find\ufffd with color\ufffd: red\ufffd")


def contents(catalogue):
    return [catalogue.product(asin) for asin in ("B1", "B2")], list(catalogue.goals), list(catalogue.search("mug"))


@pytest.mark.parametrize("name", ["products.bin", "offsets.npy", "report.json", "index", "order.npy", "goals"])
def test_a_damaged_cache_is_built_again(raw, write_catalogue, tmp_path, capfd, name):
    files = write_catalogue([raw("B1"), raw("B2")])
    first = contents(envs.make("webshop", **files).catalogue)
    found = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and name in str(path)]
    assert found
    for path in found:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capfd.readouterr()
    second = contents(envs.make("webshop", **files).catalogue)
    said = [line for line in capfd.readouterr().err.splitlines() if str(tmp_path / "cache") in line]
    assert len(said) == 1
    assert second == first


def test_instruction_without_attributes_is_counted(raw, write_catalogue):
    empty = {"instruction": "Find me mugs", "instruction_attributes": []}
    good = {"instruction": "Find me mugs", "instruction_attributes": ["dishwasher safe"]}
    env = envs.make("webshop", **write_catalogue([raw("B1"), raw("B2")], {"B1": empty, "B2": good}))
    assert list(env.catalogue.product_store.report.problems) == [
        "an instruction without attributes (the product has no goals)"
    ]
    assert {goal.asin for goal in env.catalogue.goals} == {"B2"}
    assert env.catalogue.product_store[0].attributes == ("DUMMY_ATTR",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-30], r"p\.json: (the file ends|record 2 is not valid JSON)"),
        (lambda text: text.replace('"B2", ', '"B2" ', 1), r"p\.json: record 1 is not valid JSON"),
        (lambda text: '{"a": 1}', r"p\.json: expected a JSON array, found '\{'"),
        (lambda text: "", r"p\.json: expected a JSON array, found ''"),
        (lambda text: "[]", "none of the 0 records is a valid product"),
        (
            lambda text: '[{"asin": "B1"}]',
            "none of the 1 records is a valid product: 1 record with a missing key 'name",
        ),
        (lambda text: "[" * 100_000, r"record 0 is not valid JSON: nested too deeply"),
    ],
)
def test_invalid_product_file_is_a_one_line_error(raw, write_catalogue, change, message):
    text = json.dumps([raw("B1"), raw("B2"), raw("B3")])
    with pytest.raises(UserError, match=message) as error:
        envs.make("webshop", **write_catalogue([raw("B1")], text=change(text)))
    assert "\n" not in str(error.value)


def test_invalid_utf8(raw, write_catalogue, tmp_path):
    settings = write_catalogue([raw("B1")])
    (tmp_path / "p.json").write_bytes(b'[{"asin": "\xff"}]')
    with pytest.raises(UserError, match=r"p\.json: not UTF-8 text"):
        envs.make("webshop", **settings)


def test_record_longer_than_a_chunk(raw, write_catalogue, monkeypatch):
    from paw_fast.envs.webshop import parsing

    monkeypatch.setattr(parsing, "_CHUNK", 16)
    env = envs.make("webshop", **write_catalogue([raw("B1"), raw("B2", full_description="x" * 1000 + " ] } , [")]))
    assert env.catalogue.product_store[1].description == "x" * 1000 + " ] } , ["


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "neither items_shuffle.json nor items_shuffle_1000.json is there"),
        (["items_shuffle_1000.json"], r"items_ins_v2_1000.json is missing: it belongs to items_shuffle_1000.json"),
    ],
)
def test_missing_files_in_a_folder(files, message, tmp_path, monkeypatch):
    for name in files:
        (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match=message):
        envs.make("webshop", data=tmp_path)
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    with pytest.raises(UserError, match=message):
        envs.make("webshop")


def test_trailing_text_is_rejected(raw, write_catalogue):
    files = write_catalogue([raw("B1")])
    with open(files["products"], "a", encoding="utf-8") as file:
        file.write(" x")
    with pytest.raises(UserError, match="'x' follows the end of the array, after record 1"):
        envs.make("webshop", **files)


def test_generated_products_have_no_human_goals(tmp_path):
    with pytest.raises(UserError, match="generated products have no human goals"):
        envs.make("webshop", goals="human", cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_paths(tmp_path):
    with pytest.raises(UserError, match=r"no WebShop file at .*nowhere"):
        envs.make("webshop", products=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no WebShop data at .*nowhere"):
        envs.make("webshop", data=tmp_path / "nowhere")


def test_catalogue_without_goals(raw, write_catalogue):
    with pytest.raises(UserError, match="no synthetic goals: the file items_ins_v2 has no entry for any of the 1 "):
        envs.make("webshop", **write_catalogue([raw("B1")], attributes={}))
    with pytest.raises(UserError, match="no human goals"):
        envs.make("webshop", goals="human", **write_catalogue([raw("B1")]))


def test_unwritable_cache(raw, write_catalogue, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the catalogue's cache") as error:
        envs.make("webshop", **write_catalogue([raw("B1")]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pricing", "tag", "prices"),
    [
        ("$877.80", "$877.8", (877.8,)), ("$16.99$26.99", "$16.99 to $26.99", (16.99, 26.99)),
        ("$1,016.99", "$1016.99", (1016.99,)), ("$3$2$1", "$3.0 to $2.0", (3.0, 2.0)), ("", "$100.0", (100.0,)),
    ],
)  # fmt: skip
def test_prices(pricing, tag, prices):
    assert read_prices(pricing) == (tag, prices, True)


def test_option_values_are_cleaned():
    raw = {"Color": [{"value": " Black/White "}], "Size": None}
    assert read_options(raw) == {"color": ("black | white",)}
