"""Skips where an extra is missing."""

import importlib.util

import pytest

EXTRA_OF = {"faiss": "search-dense"}


def need(*modules):
    """Skips the test (or, at a module's top, all of its tests) where a module of an extra is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            extra = EXTRA_OF.get(module, "search")
            pytest.skip(f"{module} is not installed: pip install 'paw-fast[{extra}]'", allow_module_level=True)
