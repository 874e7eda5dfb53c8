"""Tests of manifests: what is recorded, and that each kind of change is found."""

import hashlib
import json

import pytest

from paw_fast.runs.manifest import MANIFEST, faults, seal


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "below" / "b.txt").write_text("text")
    seal(tmp_path, step=3)
    return tmp_path


def test_what_is_recorded(folder):
    written = json.loads((folder / MANIFEST).read_text())
    assert written["step"] == 3
    assert written["files"]["a.bin"] == {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert sorted(written["files"]) == ["a.bin", "below/b.txt"]
    assert faults(folder) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a.bin").unlink(), "a.bin is missing"),
        (lambda f: (f / "a.bin").write_bytes(b"abcd"), "a.bin has 4 bytes, expected 3"),
        (lambda f: (f / "a.bin").write_bytes(b"abd"), "a.bin has changed (its checksum differs)"),
        (lambda f: (f / "below" / "c").write_text(""), "below/c was added"),
        (lambda f: (f / MANIFEST).unlink(), "manifest.json is missing"),
        (lambda f: (f / MANIFEST).write_text('{"schema": 1}'), "manifest.json cannot be read ('files')"),
        (lambda f: (f / MANIFEST).write_text('{"schema": 9, "files": {}}'), "its schema is 9"),
    ],
)
def test_each_change_is_found(folder, damage, message):
    damage(folder)
    found = faults(folder)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_sizes_alone_are_quicker_and_miss_changed_bytes(folder):
    (folder / "a.bin").write_bytes(b"abd")
    assert faults(folder, contents=False) == []


def test_locks_and_folders_with_their_own_manifest_are_not_part_of_it(folder):
    (folder / ".lock").write_text("")
    (folder / "own").mkdir()
    (folder / "own" / "x").write_text("x")
    assert faults(folder) == ["own/x was added"]
    seal(folder / "own")
    assert faults(folder) == []
