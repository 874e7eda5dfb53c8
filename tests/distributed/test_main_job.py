"""The main command on two ranks: metrics of one rank, resuming on another number, stopping, mistakes."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from paw_fast.cli import main
from paw_fast.config import load_toml
from paw_fast.runs.checkpoint import faults_of, list_checkpoints
from paw_fast.runs.metrics import read_metrics

SHORT = [
    "--env", "alfworld", "--preset", "tiny", "--eval-every", "2", "--eval-tasks", "4",
    "--save-every", "2", "--env.num-train", "40", "--env.num-unseen", "8", "--env.max-steps", "5",
    "--rollout.groups", "2", "--rollout.group-size", "2", "--rollout.slots", "4", "--algo.minibatches", "2",
    "--algo.kl-coef", "0.01", "--warm-start.episodes", "24", "--warm-start.epochs", "1", "--log", "none",
    "--optim.learning-rate", "1e-3",
]  # fmt: skip
PROCESSES = ["--rollout.placement", "process", "--rollout.replicas", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def start(folder, *args, launcher=()):
    command = [sys.executable, *launcher, "-m", "paw_fast", "train", *map(str, args)]
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, status=0):
    out, _ = process.communicate(timeout=500)
    assert process.returncode == status, out
    return out


def numbers(run):
    skip = ("time/", "throughput/", "memory/", "idle/")
    return [{k: v for k, v in row.items() if not k.startswith(skip)} for row in read_metrics(run)]


def near(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_two_ranks_give_the_metrics_of_one_and_resume_each_other(folder):
    finish(start(folder, *SHORT, "--steps", "4", "--run-dir", "one"))
    finish(start(folder, *SHORT, *PROCESSES, "--steps", "4", "--run-dir", "two", "--trainer.gpus", "2"))
    near(numbers(folder / "two"), numbers(folder / "one"))
    checkpoint = list_checkpoints(folder / "two")[-1]
    assert (checkpoint / "sharded" / "__1_0.distcp").is_file()
    assert not (checkpoint / "optimizer.pt").exists()
    assert load_toml(folder / "two" / "config.toml", of_run=True).trainer.gpus == 2
    for name in ("one", "two"):
        shutil.copytree(folder / name, folder / f"{name}_again")
    finish(start(folder, "--resume", "one", "--steps", "6"))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    finish(start(folder, "--resume", "one_again", "--steps", "6", launcher=torchrun))
    finish(start(folder, "--resume", "two_again", "--steps", "6", "--trainer.gpus", "1"))
    assert [row["step"] for row in numbers(folder / "one")] == list(range(7))
    near(numbers(folder / "one_again"), numbers(folder / "one"))
    near(numbers(folder / "two_again"), numbers(folder / "one"))
    damaged = list_checkpoints(folder / "two")[-1] / "sharded" / ".metadata"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "sharded/.metadata" in faults_of(damaged.parents[1])[0]


@pytest.mark.slow
def test_a_stopped_run_saves_and_ends_all_ranks(folder):
    process = start(folder, *SHORT, "--run-dir", folder / "stopped", "--steps", "1000", "--trainer.gpus", "2")
    deadline = time.monotonic() + 400
    while not (folder / "stopped" / "metrics.jsonl").exists() or len(read_metrics(folder / "stopped")) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out = finish(process, 75)
    assert "saved after step" in out
    assert faults_of(list_checkpoints(folder / "stopped")[-1]) == []
    assert subprocess.run(["pgrep", "-f", str(folder / "stopped")], capture_output=True).returncode == 1


def test_settings_are_read_without_starting_processes(capsys):
    assert main.run(["train", "--preset", "tiny", "--trainer.gpus", "2", "--print-config"]) == 0
    assert "[trainer]\ngpus = 2" in capsys.readouterr().out
    assert not torch.distributed.is_initialized()
