"""Tests the error for a missing extra `webshop`; runs whether or not it is installed."""

import importlib.util

import pytest

from paw_fast.cli import main
from paw_fast.envs.webshop.search import require
from paw_fast.errors import UserError


@pytest.fixture
def without_extra(monkeypatch):
    real = importlib.util.find_spec
    gone = ("bm25s", "Stemmer", "rapidfuzz", "spacy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else real(name, *rest))
    require.cache_clear()
    yield
    require.cache_clear()


@pytest.mark.parametrize("command", ["play", "train"])
def test_missing_extra_is_a_one_line_error(command, without_extra, tmp_path, monkeypatch):
    for name in ("items_shuffle_1000.json", "items_ins_v2_1000.json"):
        (tmp_path / name).write_text("[]" if "shuffle" in name else "{}")
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pip install .*\[webshop\]'") as error:
        main.run([command, "--env", "webshop"])
    assert "rapidfuzz" in str(error.value)
    assert "\n" not in str(error.value)
