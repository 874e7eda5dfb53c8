"""Environments and algorithms by name: built-in, from a file of the user, by entry point."""

import sys

import pytest

from paw_fast import registry
from paw_fast.errors import UserError


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(registry, "_found", {})
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_built_in_names_come_first():
    assert registry.names("environments")[:5] == ("alfworld", "webshop", "search", "babyai", "scienceworld")
    assert registry.names("algorithms")[:4] == ("grpo", "rloo", "gigpo", "ppo")
    assert [registry.find("environments", name).name for name in registry.names("environments")[:5]] == [
        "alfworld", "webshop", "search", "babyai", "scienceworld",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "alfwrld", "--env alfwrld: no such environment; did you mean alfworld"),
        ("", "zzz", "there are alfworld, webshop, search, babyai, scienceworld, or module:Name"),
        ("", "no_such_module:X", "there is no module no_such_module in"),
        (
            "import no_such_package",
            "mine_a:X",
            "importing mine_a failed: ModuleNotFoundError: No module named 'no_such",
        ),
        ("1 / 0", "mine_b:X", "importing mine_b failed: ZeroDivisionError: division by zero"),
        ("class Corridor: pass", "mine_c:Coridor", "mine_c has no 'Coridor'; did you mean Corridor"),
        ("X = 3", "mine_d:X", "expected an EnvSpec or a class"),
    ],
)
def test_what_cannot_be_found_says_why(tmp_path, monkeypatch, text, name, message):
    monkeypatch.chdir(tmp_path)
    if ":" in name and text:
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(text)
    with pytest.raises(UserError) as error:
        registry.find("environments", name)
    assert message in str(error.value)


def test_entry_points(tmp_path, monkeypatch):
    package = tmp_path / "other.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[paw_fast.environments]\nhouse = other_env:SPEC\nbroken = gone:SPEC\n")
    (tmp_path / "other_env.py").write_text("from paw_fast.envs.alfworld.spec import SPEC\n")
    sys.path.insert(0, str(tmp_path))
    assert {"house", "broken"} <= set(registry.names("environments"))
    assert registry.find("environments", "house").name == "alfworld"
    with pytest.raises(UserError, match="cannot load its entry point gone:SPEC"):
        registry.find("environments", "broken")
