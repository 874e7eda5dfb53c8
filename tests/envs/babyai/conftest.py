"""Skips the tests of BabyAI without minigrid."""

import importlib.util

import pytest


@pytest.fixture(autouse=True)
def _need_minigrid():
    if importlib.util.find_spec("minigrid") is None:
        pytest.skip("minigrid is not installed: pip install '.[babyai]'")
