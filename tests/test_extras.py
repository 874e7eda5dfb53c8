"""Tests the command that errors name for an extra."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import tomllib

from paw_fast import extras

ROOT = Path(__file__).resolve().parents[1]


class Distribution:
    """An installed distribution with pip's direct_url.json."""

    def __init__(self, source):
        self.source = source

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.source if self.source is None or isinstance(self.source, str) else json.dumps(self.source)


def hint(monkeypatch, source):
    monkeypatch.setattr(extras.metadata, "distribution", lambda name: Distribution(source))
    return extras.install_hint("search")


def test_a_checkout_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "my paw's"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    url = folder.as_uri()
    assert "%20" in url
    told = hint(monkeypatch, {"url": url, "dir_info": {"editable": True}})
    assert told.startswith("pip install -e ")
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {told}"], capture_output=True, text=True, check=True).stdout
    assert words.splitlines() == ["pip", "install", "-e", f"{folder}[search]"]
    assert "-e" not in hint(monkeypatch, {"url": url, "dir_info": {}})


def test_other_sources(monkeypatch, tmp_path):
    in_checkout = "pip install '.[search]' in a checkout of paw-fast"
    assert hint(monkeypatch, {"url": (tmp_path / "gone").as_uri(), "dir_info": {}}) == in_checkout
    assert hint(monkeypatch, "not json") == in_checkout
    assert hint(monkeypatch, None) == "pip install 'paw-fast[search]'"
    assert hint(monkeypatch, {"url": "file:///a/paw_fast.whl", "archive_info": {}}) == (
        "pip install 'paw-fast[search] @ file:///a/paw_fast.whl'"
    )
    git = {"url": "https://host/paw.git", "vcs_info": {"vcs": "git", "commit_id": "1a2b"}}
    assert hint(monkeypatch, git) == "pip install 'paw-fast[search] @ git+https://host/paw.git@1a2b'"


def test_a_package_that_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras.metadata, "distribution", missing)
    assert extras.install_hint("search") == "pip install '.[search]' in a checkout of paw-fast"


def test_pip_takes_the_requirement():
    """pip itself reads the command of this installation and knows the extra."""
    words = re.fullmatch(r"pip install (?:-e )?'(.*)'", extras.install_hint("tensorboard"))
    if words is None:
        pytest.skip("this package was not installed from a folder")
    code = "from pip._internal.req.constructors import install_req_from_line as read; import sys; r = read(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(r.link or r.req, *r.extras)", words[1]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "tensorboard"


def test_every_extra_in_an_error_exists():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = set()
    for path in (ROOT / "paw_fast").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"install_hint\(['\"]([\w-]+)['\"]\)", text))
        assert path.name == "extras.py" or "paw-fast[" not in text, f"{path} words a hint of its own"
    assert named
    assert named <= set(known)
