"""Commands without a home folder, a cache, a folder for temporary files, a UTF-8 locale or a current folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))
from small_runs import SETTINGS, make_model

NO_HOME = """
import os, pwd
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown  # as for a container's user without an entry
for name in ("HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
"""
NO_FOLDER = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
NO_TMPDIR = "import tempfile; tempfile.tempdir = None; tempfile._candidate_tempdir_list = lambda: ['/proc/nowhere']"
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


def training(model, run):
    return ["train", *SETTINGS, "--steps", "1", "--model", model, "--run-dir", run]


def error_of(got):
    assert got["status"] == 2, got
    assert "Traceback" not in got["err"]
    lines = [line for line in got["err"].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, got["err"]
    return lines[0]


def test_a_user_without_a_home_folder_is_told_to_set_the_cache(command, model, tmp_path):
    got = command(tmp_path, *training(model, "run"), setup=NO_HOME)
    assert "this user has no home folder: set XDG_CACHE_HOME" in error_of(got)
    assert os.listdir(tmp_path) == []
    got = command(tmp_path, "doctor", "--json", setup=NO_HOME)
    assert "set XDG_CACHE_HOME" in got["out"], got
    assert command(tmp_path, "recipes", setup=NO_HOME)["status"] == 0


def test_a_run_without_a_home_folder(command, model, cache, tmp_path):
    setup = f"{NO_HOME}\nos.environ.update({cache!r})"
    got = command(tmp_path, *training(model, "run"), setup=setup)
    assert got["status"] == 0, got
    assert (tmp_path / "run" / "checkpoints" / "step_000001").is_dir()


@pytest.mark.parametrize("args", [["train", "--preset", "tiny", "--env.data", "~nobody-here/games"]])
def test_the_home_folder_of_nobody(command, tmp_path, args):
    assert "a path begins with ~, but no such user has a home folder" in error_of(command(tmp_path, *args))


def test_a_run_without_a_folder_for_temporary_files(command, model, cache, tmp_path):
    got = command(tmp_path, *training(model, "run"), env=cache, setup=NO_TMPDIR)
    assert got["status"] == 0, got


COMMANDS = [["doctor"], ["train", "--preset", "tiny"], ["eval", "run"], ["report", "run"], ["play"]]


@pytest.mark.parametrize("args", COMMANDS)
def test_a_current_folder_that_was_removed(command, tmp_path, args):
    got = command(tmp_path, *args, setup=NO_FOLDER)
    assert "the current folder cannot be read (No such file or directory)" in error_of(got)
    assert command(tmp_path, "recipes", setup=NO_FOLDER)["status"] == 0


def test_names_that_are_not_utf8_are_refused(command, tmp_path):
    got = command(tmp_path, "train", "--preset", "tiny", "--run-dir", "r\udce9")
    assert "the argument r\\udce9 is not UTF-8: set LC_ALL=C.UTF-8" in error_of(got)
    assert os.listdir(tmp_path) == []
    folder = tmp_path / "r\udce9"
    folder.mkdir()
    got = command(tmp_path, "train", "--preset", "tiny", setup=f"import os; os.chdir({str(folder)!r})")
    assert "the current folder" in error_of(got)


def test_a_cache_that_cannot_be_made_is_named(command, model, tmp_path):
    got = command(tmp_path, *training(model, "run"), env={"XDG_CACHE_HOME": "/proc/nowhere"})
    assert "set XDG_CACHE_HOME" in error_of(got)
    assert os.listdir(tmp_path) == []


def test_a_read_only_cache_that_has_everything_is_used(command, model, cache, tmp_path):
    if os.getuid() or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    assert command(tmp_path, *training(model, "first"), env=cache)["status"] == 0
    folder = cache["XDG_CACHE_HOME"]
    read_only = f"""
import ctypes, os, subprocess
assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS: mounts of this process alone
for options in (["--make-rprivate", "/"], ["--bind", {folder!r}, {folder!r}], ["-o", "remount,bind,ro", {folder!r}]):
    subprocess.run(["mount", *options], check=True)
try:
    os.mkdir({folder + "/new"!r})
    raise SystemExit("not read-only")
except OSError:
    pass
"""
    got = command(tmp_path, *training(model, "second"), env=cache, setup=read_only)
    if "unshare" in got["err"] or "mount" in got["err"]:
        pytest.skip("no mount namespace here")
    assert got["status"] == 0, got


def run_ascii(folder, *args, timeout=60):
    command = [sys.executable, "-m", "paw_fast.cli.main", *map(str, args)]
    return subprocess.run(
        command, cwd=folder, env=os.environ | ASCII, capture_output=True, timeout=timeout, check=False
    )  # fmt: skip


def test_a_locale_without_the_letters(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "tiny"\nrun_dir = "läufe/日本"\n', encoding="utf-8")
    got = run_ascii(tmp_path, "train", "--config", "mine.toml", "--print-config")
    assert got.returncode == 0, got.stderr
    assert rb"l\xe4ufe/\u65e5\u672c" in got.stdout
    for args in (["--version"], ["recipes"]):
        assert run_ascii(tmp_path, *args).returncode == 0


@pytest.mark.slow
def test_a_run_in_a_locale_without_the_letters(model, tmp_path):
    got = run_ascii(tmp_path, *training(model, "run"), timeout=300)
    assert got.returncode == 0, got.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    (tmp_path / "mine.toml").write_text('base = "tiny"\nrun_dir = "läufe"\n', encoding="utf-8")
    got = run_ascii(tmp_path, "train", "--config", "mine.toml", timeout=300)
    assert got.returncode == 2
    assert b"this locale has no file name 'l\\xe4ufe' (it is ascii): set LC_ALL=C.UTF-8" in got.stderr
    assert b"Traceback" not in got.stderr
