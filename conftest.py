"""`pytest --benchmark` runs bench/ in place of tests/; pytest-benchmark's own options stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", dest="run_bench", help="run the benches under bench/")
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    named = config.args_source == pytest.Config.ArgsSource.ARGS
    if config.getoption("run_bench") and not named:
        config.args = [str(ROOT / "bench")]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: pytest --slow runs it"))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """bench_<op>.py holds benches; pytest's own patterns know only test files."""
    if parent.config.getoption("run_bench") and file_path.suffix == ".py" and file_path.name.startswith("bench_"):
        return pytest.Module.from_parent(parent, path=file_path)
    return None
