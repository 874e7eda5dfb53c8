"""The example algorithm: its credit by hand, and a run from a folder outside the checkout."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paw_fast.algorithms.base import make_algorithm
from paw_fast.config import algo_config, load_preset, load_toml, validate, with_algo
from paw_fast.errors import UserError
from paw_fast.runs.metrics import read_metrics
from paw_fast.types import EpisodeId, RolloutBatch, Task, TokenStats, Trajectory, Transition

ROOT = Path(__file__).resolve().parents[1]
NAME = "custom_algorithm:ReinforcePlusPlus"
SMALL = {
    "--steps": 2, "--eval-tasks": 2, "--eval-every": 0, "--warm-start.episodes": 6, "--warm-start.vocab-size": 300,
    "--warm-start.layers": 1, "--warm-start.epochs": 1, "--rollout.groups": 2, "--rollout.group-size": 1,
    "--rollout.slots": 2, "--algo.minibatches": 1, "--env.num-train": 12, "--env.num-unseen": 4, "--env.max-steps": 3,
    "--algo.gamma": 0.9,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with nothing but the example in it, which is the current one."""
    shutil.copy(ROOT / "examples" / "custom_algorithm.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder, *args):
    variables = {**os.environ, "PAW_FAST_CUDA": "off", "XDG_CACHE_HOME": str(folder / "cache")}
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", "from paw_fast.cli.main import main; main()", *map(str, args)],
        cwd=folder, env=variables, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_guide_shows_the_example():
    text = (ROOT / "docs" / "howto" / "add_algorithm.md").read_text()
    assert '```python\n--8<-- "examples/custom_algorithm.py"\n```' in text
    assert f"--algo {NAME} --preset tiny" in text


def test_it_is_trained_resumed_and_evaluated_from_its_folder(folder):
    """Groups of one, which algorithms that compare episodes would refuse."""
    options = [word for pair in SMALL.items() for word in pair]
    run(folder, "train", "--algo", NAME, "--preset", "tiny", "--env", "alfworld", *options, "--run-dir", "run")
    rows = read_metrics(folder / "run")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(np.isfinite(row["policy/loss"]) for row in rows[1:])
    config = load_toml(folder / "run" / "config.toml")
    assert (config.algo.name, config.algo.gamma) == (NAME, 0.9)
    run(folder, "train", "--resume", "run", "--steps", 3, "--algo.gamma", 0.5)
    assert read_metrics(folder / "run")[-1]["step"] == 3
    assert '"num_tasks": 2' in run(folder, "eval", "run", "--tasks", 2, "--json")


def test_its_options_are_its_own(folder):
    text = run(folder, "train", "--algo", NAME, "--help", "algo")
    assert "--algo.gamma X" in text
    assert "--algo.clip-low" in text
    assert "--algo.normalize-std" not in text
    assert "--critic." not in text


def test_its_settings_are_checked(folder):
    config = with_algo(load_preset("tiny"), NAME)
    validate(config)
    with pytest.raises(UserError, match=r"--algo\.gamma is 2\.0, expected a number in \[0, 1\]"):
        validate(dataclasses.replace(config, algo=dataclasses.replace(config.algo, gamma=2.0)))


def transition(reward, tokens, valid=True):
    return Transition((1,), (2,) * tokens, (-1.0,) * tokens, (3,), (True,), "c", "o", "s", reward, valid)


def test_by_hand(folder):
    """Two episodes: rewards 0, 8 (an action of two tokens) and 0; returns with gamma 1/2 are 4, 8 and 0."""
    config = dataclasses.replace(load_preset("tiny"), algo=dataclasses.replace(algo_config(NAME), gamma=0.5))
    won = Trajectory(Task("t"), EpisodeId(0, 0, 0), (transition(0.0, 1), transition(8.0, 2)), 8.0, 8.0, True)
    lost = Trajectory(Task("t"), EpisodeId(0, 1, 0), (transition(0.0, 1),), 0.0, 0.0, False)
    stats = TokenStats([np.zeros(1), np.zeros(2), np.zeros(1)], [np.zeros(1), np.zeros(2), np.zeros(1)], None,
                       [])  # fmt: skip
    credit = make_algorithm(config).credit(RolloutBatch((won, lost), ()), stats)
    values = np.array([4.0, 8.0, 8.0, 0.0])
    expected = (values - 5.0) / values.std(ddof=1)
    assert [len(one) for one in credit.advantages] == [1, 2, 1]
    assert np.concatenate(credit.advantages) == pytest.approx(expected, abs=1e-6)
    assert credit.policy_mask.tolist() == [True, True]
