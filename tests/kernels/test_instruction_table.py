"""The committed table of executed instructions can be read; `test_builds` compares it with the kernels."""

import importlib
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "bench" / "kernels"


def test_the_committed_table_is_read_whole(monkeypatch):
    monkeypatch.syspath_prepend(KERNELS)
    counts = importlib.import_module("instruction_counts")
    text = counts.TABLE.read_text(encoding="utf-8")
    table = counts.read_table(text)
    assert len(table) == text.count("\n| ") - 2 >= 50
    assert {vocab.split(",")[0] for _, _, vocab in table} == {str(size) for size in counts.VOCABS}
    assert all(1 < count < 100 for count in table.values())
    row = "| paw_loss cluster_kernel | bf16 | 32000 | 19.65 | 188 |"
    assert row in text
    assert table[("paw_loss cluster_kernel", "bf16", "32000")] == pytest.approx(19.65)
