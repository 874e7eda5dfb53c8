"""Skips tests whose optional dependencies are not installed."""

import importlib.util

import pytest

EXTRA_OF = {"faiss": "search-dense"}


def need(*modules):
    """Skips the calling test, or test module if called at its top, unless all the modules are installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            extra = EXTRA_OF.get(module, "search")
            pytest.skip(f"{module} is not installed: pip install '.[{extra}]'", allow_module_level=True)
