"""Tests of folders in the cache: made once, verified at each use, made again with one line."""

import pytest

from paw_fast.runs import cached_folder as module
from paw_fast.runs.cached_folder import cached_folder


def test_it_is_made_once_and_again_where_it_is_damaged(tmp_path, capsys):
    made = []

    def build(hidden):
        made.append(1)
        (hidden / "a").write_text("whole")

    def use():
        return cached_folder(tmp_path / "x", build, "letters", tmp_path / ".x.lock")

    assert use() == use() == tmp_path / "x"
    assert made == [1]
    (tmp_path / "x" / "a").write_text("WHOLE")
    assert (use() / "a").read_text() == "whole"
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.startswith(f"the letters in {tmp_path / 'x'} are damaged: a has changed (its checksum differs); making")
    use()
    assert made == [1, 1]
    assert capsys.readouterr().err == ""


def test_of_large_folders_names_and_sizes_are_verified(tmp_path, monkeypatch):
    def build(hidden):
        (hidden / "a").write_text("whole")

    folder = cached_folder(tmp_path / "x", build, "letters", tmp_path / ".x.lock")
    monkeypatch.setattr(module, "MAX_DIGEST_BYTES", 4)
    (folder / "a").write_text("WHOLE")
    assert module.damage(folder) == []
    (folder / "a").write_text("who")
    assert module.damage(folder) == ["a has 3 bytes, expected 5"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(hidden):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        cached_folder(tmp_path / "x", build, "letters", tmp_path / ".x.lock")
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]
