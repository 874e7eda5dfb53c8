"""Tests of checkpoints on full and read-only disks, without permission, and in processes that are killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoint_helpers import Run, tiny_model

from paw_fast.errors import UserError
from paw_fast.runs.checkpoint import list_checkpoints, load_checkpoint, verify_checkpoint
from paw_fast.runs.retention import prune

HEAD = """
import os, resource, signal, sys
sys.path.insert(0, {here!r})
from checkpoint_helpers import Run, tiny_model
from pathlib import Path
import paw_fast.runs.checkpoint as checkpoint
import paw_fast.runs.retention as retention
from paw_fast.runs.atomic_files import exit_code_of
run = Run(tiny_model())
folder = Path({folder!r})
"""


def script(folder: Path, body: str) -> list[str]:
    return [sys.executable, "-c", HEAD.format(here=str(Path(__file__).parent), folder=str(folder)) + body]


def run_script(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(script(folder, body), capture_output=True, text=True, timeout=300, check=False)


def assert_only_intact(folder: Path, steps: list[int]) -> None:
    """Asserts that the folder contains intact checkpoints of these steps and nothing else."""
    assert sorted(one.name for one in (folder / "checkpoints").iterdir()) == [f"step_{step:06d}" for step in steps]
    for path in list_checkpoints(folder):
        verify_checkpoint(path)


def test_a_file_that_exceeds_the_size_limit(tmp_path):
    """With limits below the size of the tokenizer, the model (11 kB) or the optimizer state (28 kB)."""
    result = run_script(
        tmp_path,
        """
run.train(1)
run.save(folder, 1)
codes = []
for limit in (3_000, 13_000, 20_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    codes.append(exit_code_of(lambda: run.save(folder, 2) and 0))
print(codes)
""",
    )
    assert result.stdout == "[2, 2, 2]\n", result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "cannot save a checkpoint" in line
        assert "ulimit -f" in line
        assert "older checkpoints are intact" in line
    assert_only_intact(tmp_path, [1])


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    run = Run(tiny_model())
    run.train(1)
    saved_steps = []

    def fill():
        for step in range(100):
            run.save(small_disk, step)
            saved_steps.append(step)

    with pytest.raises(UserError) as caught:
        fill()
    assert "the disk is full" in str(caught.value)
    assert "older checkpoints are intact" in str(caught.value)
    assert saved_steps
    assert_only_intact(small_disk, saved_steps)
    prune(small_disk, 1)
    run.save(small_disk, 100)
    assert load_checkpoint(small_disk).step == 100


def test_a_read_only_disk(small_disk):
    run = Run(tiny_model())
    run.save(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="the file system is read-only"):
        run.save(small_disk, 2)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    run.save(small_disk, 2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="cannot remove an old checkpoint"):
        prune(small_disk, 1)
    assert_only_intact(small_disk, [1, 2])


def test_no_permission(tmp_path):
    """As a user that can read but not write. Root can always write, so it becomes the user nobody."""
    Run(tiny_model()).save(tmp_path, 1)
    for path in [tmp_path, *tmp_path.parents][:3]:
        path.chmod(0o755)
    (tmp_path / "checkpoints").chmod(0o555)
    try:
        result = run_script(
            tmp_path,
            """
os.getuid() or os.setuid(65534)
sys.exit(exit_code_of(lambda: run.save(folder, 2) and 0))
""",
        )
    finally:
        (tmp_path / "checkpoints").chmod(0o755)
    assert result.returncode == 2, result.stderr
    assert "no permission to write there" in result.stderr
    assert result.stderr.count("\n") == 1
    assert_only_intact(tmp_path, [1])


def test_a_kill_at_each_stage(tmp_path):
    """Processes are killed by SIGKILL after the model, after the tensors, after the manifest and before the rename."""
    body = """
name = {!r}
run.save(folder, 1)
original = getattr(checkpoint, name)
def dies(*args, **more):
    if name != "_publish":
        original(*args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(checkpoint, name, dies)
run.save(folder, 2)
"""
    stages = ("save_model", "_save_torch", "seal", "_publish")
    running = {name: subprocess.Popen(script(tmp_path / name, body.format(name))) for name in stages}
    for name, process in running.items():
        folder = tmp_path / name
        assert process.wait(timeout=300) == -signal.SIGKILL
        assert sorted(os.listdir(folder / "checkpoints")) == [".tmp-step_000002", "step_000001"]
        assert load_checkpoint(folder).step == 1
        Run(tiny_model()).save(folder, 2)
        assert_only_intact(folder, [1, 2])


def test_kills_at_random_moments(tmp_path):
    """A process that saves and prunes in a loop is killed from outside: all checkpoints it leaves are intact."""
    body = """
step = 1 + max([int(p.name[5:]) for p in checkpoint.list_checkpoints(folder)], default=0)
while True:
    run.save(folder, step, counter=step)
    retention.prune(folder, 2)
    step += 1
    print(step, flush=True)
"""
    chance = random.Random(4)
    for _ in range(2):
        with subprocess.Popen(script(tmp_path, body), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            time.sleep(chance.random() / 2)
            process.kill()
        found = list_checkpoints(tmp_path)
        assert 1 <= len(found) <= 3
        for path in found:
            verify_checkpoint(path)
        checkpoint = load_checkpoint(tmp_path)
        assert checkpoint.extra == {"counter": checkpoint.step}
