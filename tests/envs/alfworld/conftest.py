"""Lets the tests here import the helpers beside them, and gives them the official games."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_official_data(monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)


@pytest.fixture(scope="session")
def official_games(test_data):
    paths = sorted((test_data / "alfworld" / "json_2.1.1").glob("*/*/*/game.tw-pddl"))
    if not paths:
        pytest.skip(f"no official ALFWorld games in {test_data}")
    return paths
