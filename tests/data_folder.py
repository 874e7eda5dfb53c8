"""Finds the folder of the real test data."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find_test_data() -> Path | None:
    """`PAW_FAST_TEST_DATA`, or `../shared/data` beside the checkout; None if neither exists."""
    named = os.environ.get("PAW_FAST_TEST_DATA")
    path = Path(named) if named else ROOT.parent / "shared" / "data"
    return path if path.is_dir() else None
