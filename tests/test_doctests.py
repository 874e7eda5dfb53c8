"""Runs the examples in docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import paw_fast

MODULES = [module.name for module in pkgutil.walk_packages(paw_fast.__path__, "paw_fast.") if "._" not in module.name]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").startswith("paw_fast"):
            raise
        pytest.skip(f"needs {error.name}")
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
