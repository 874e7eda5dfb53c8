"""Tests of creating and reading run directories, without training."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.config import TrainConfig, algo_config, env_config
from paw_fast.errors import UserError
from paw_fast.runs import atomic_files, run_dir, versions
from paw_fast.runs.retention import best_checkpoint, prune, recover_replaced, write_best

CREATE = """
import sys, time
from paw_fast.config import TrainConfig
from paw_fast.runs import run_dir
time.strftime = lambda form, now=None: "-20261126-120000" if form.startswith("-") else "x"
made = run_dir.create_run(TrainConfig(seed=int(sys.argv[1])))
print(made)
"""


@pytest.fixture
def created(tmp_path):
    made = run_dir.create_run(TrainConfig(run_dir=tmp_path / "run"))
    run_dir.unlock(made)
    return made


def test_a_name_says_environment_algorithm_loss_seed_and_time():
    config = TrainConfig(env=env_config("webshop"), algo=algo_config("gigpo"), seed=7)
    config = dataclasses.replace(config, paw=dataclasses.replace(config.paw, enabled=False))
    assert run_dir.run_name(config, time.gmtime(3600)) == "webshop-gigpo-rl-s7-19700101-010000"


@given(st.text(max_size=20))
def test_names_of_foreign_environments_are_safe(name):
    env = dataclasses.replace(env_config("alfworld"), name=name or "x")
    made = run_dir.run_name(TrainConfig(env=env), time.gmtime(0))
    assert "/" not in made
    assert not set(made) & set(" []'\"\n:")


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path):
    """Seeds that are launched together, also twice the same one."""
    seeds = [0, 0, 0, 1, 1, 2]
    command = [sys.executable, "-c", CREATE]
    running = [
        subprocess.Popen([*command, str(seed)], cwd=tmp_path, stdout=subprocess.PIPE, text=True) for seed in seeds
    ]
    made = [process.communicate(timeout=300)[0].strip() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sorted(made) == [
        "runs/alfworld-grpo-paw-s0-20261126-120000", "runs/alfworld-grpo-paw-s0-20261126-120000-2",
        "runs/alfworld-grpo-paw-s0-20261126-120000-3", "runs/alfworld-grpo-paw-s1-20261126-120000",
        "runs/alfworld-grpo-paw-s1-20261126-120000-2", "runs/alfworld-grpo-paw-s2-20261126-120000",
    ]  # fmt: skip
    for folder, seed in zip(made, seeds, strict=True):
        assert run_dir.load_config(tmp_path / folder).seed == seed


def test_each_start_is_recorded(created, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/paw-fast", "train", "--env.retriever", "http://me:secret@h/"])
    run_dir.record_start(created)
    recorded = json.loads((created / "versions.json").read_text())
    first, second = recorded["starts"]
    assert recorded["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert second["command"] == "paw-fast train --env.retriever http://***@h/"
    assert first["host"] == second["host"] != ""
    assert "cores" in first["device"]
    assert second["changed"] == {}


def test_versions_that_changed_are_named():
    recorded = versions.with_start({"python": "3.1", "starts": []})
    assert recorded["python"] == "3.1"
    assert recorded["starts"][0]["changed"]["python"] == versions.versions()["python"]


def test_the_commit_of_a_checkout(tmp_path):
    def git(*args):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b", *args], check=True)

    assert versions.git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    assert versions.git_commit(tmp_path) is None  # nothing is tracked
    git("add", "file")
    git("commit", "-qm", "one")
    commit = subprocess.run(
        ["git", "-C", str(tmp_path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert versions.git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert versions.git_commit(tmp_path) == f"{commit}-dirty"


@pytest.mark.parametrize("key", run_dir.NEEDED_KEYS)
def test_a_config_that_lacks_a_setting_is_refused(created, key):
    path = created / "config.toml"
    table, _, name = key.rpartition(".")
    lines, inside, kept = path.read_text().splitlines(keepends=True), "", []
    for line in lines:
        inside = line.strip()[1:-1] if line.startswith("[") else inside
        if not (inside == table and line.startswith(f"{name} = ")):
            kept.append(line)
    assert len(kept) == len(lines) - 1
    path.write_text("".join(kept))
    with pytest.raises(UserError, match=rf"config.toml has no {key}, so it is not the config of a run"):
        run_dir.load_config(created)


def test_an_empty_config_is_refused(created):
    (created / "config.toml").write_text("")
    with pytest.raises(UserError, match="has no seed"):
        run_dir.load_config(created)


def test_a_temporary_file_follows_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_files.os, "getpid", lambda: 7)
    (tmp_path / "other").write_text("precious")
    (tmp_path / ".tmp-file-7").symlink_to(tmp_path / "other")
    atomic_files.write_text(tmp_path / "file", "new")
    assert (tmp_path / "other").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"
    assert not (tmp_path / "file").is_symlink()


def make_checkpoints(folder, steps):
    from checkpoint_helpers import tiny_model

    from paw_fast.runs.checkpoint import save_checkpoint

    for step in steps:
        save_checkpoint(folder, step, model=tiny_model())


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    make_checkpoints(tmp_path, [1, 2, 3])
    write_best(tmp_path, 1, 0.75, 8)
    assert [path.name for path in prune(tmp_path, 1, (1,))] == ["step_000002"]
    assert names(tmp_path) == ["step_000001", "step_000003"]
    assert best_checkpoint(tmp_path).name == "step_000001"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no best.json: it has not been evaluated"), ("{", "cannot read"), ('{"step": 4}', "does not exist")],
)
def test_without_a_best_checkpoint(tmp_path, text, message):
    if text is not None:
        (tmp_path / "best.json").write_text(text)
    with pytest.raises(UserError, match=message):
        best_checkpoint(tmp_path)


def test_a_checkpoint_that_was_being_replaced_is_restored(tmp_path):
    """A kill between the two renames leaves the hidden name only."""
    make_checkpoints(tmp_path, [1, 2])
    root = tmp_path / "checkpoints"
    (root / "step_000002").rename(root / ".tmp-old-step_000002")
    assert recover_replaced(tmp_path) == [root / "step_000002"]
    assert names(tmp_path) == ["step_000001", "step_000002"]


def test_a_checkpoint_that_was_being_removed_is_not_restored(tmp_path):
    make_checkpoints(tmp_path, [1])
    root = tmp_path / "checkpoints"
    (root / "step_000001").rename(root / ".tmp-old-step_000001")
    (root / ".tmp-old-step_000001" / "model.safetensors").unlink()
    assert recover_replaced(tmp_path) == []


def test_stray_files_and_links_with_temporary_names_do_not_stop_a_save(tmp_path):
    root = tmp_path / "checkpoints"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("precious")
    (root / ".tmp-stray").write_text("")
    (root / ".tmp-link").symlink_to(tmp_path / "elsewhere")
    (root / ".tmp-broken").symlink_to(tmp_path / "missing")
    make_checkpoints(tmp_path, [1])
    assert names(tmp_path) == ["step_000001"]
    assert (tmp_path / "elsewhere" / "file").read_text() == "precious"
