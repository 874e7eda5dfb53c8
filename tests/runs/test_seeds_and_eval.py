"""Tests of `paw-fast train --seeds` and of `paw-fast eval` with several runs, with the smallest settings."""

import json
import shutil
import signal

import pytest
from small_runs import SETTINGS

from paw_fast.cli import main
from paw_fast.errors import UserError
from paw_fast.learner import Learner
from paw_fast.runs.run_dir import load_config

pytestmark = pytest.mark.usefixtures("own_cache")


def train(model, *options):
    return main.run(["train", *SETTINGS, "--model", str(model), *map(str, options)])


@pytest.fixture(scope="module")
def runs(own_cache, model, tmp_path_factory):
    """The folder of two finished runs of one step, seeds 3 and 1."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(model, "--steps", 1, "--run-dir", folder, "--seeds", 3, 1) == 0
    return folder


def one_line(text):
    return " ".join(text.split())


def test_each_seed_is_a_run_of_its_own(runs):
    assert sorted(path.name for path in runs.iterdir()) == ["s1", "s3"]
    for seed in (1, 3):
        config = load_config(runs / f"s{seed}")
        assert (config.seed, config.steps) == (seed, 1)
        assert json.loads((runs / f"s{seed}" / "summary.json").read_text())["seed"] == seed


def test_a_seed_that_fails_does_not_stop_the_others(model, runs, tmp_path, capfd):
    shutil.copytree(runs / "s3", tmp_path / "s3")
    assert train(model, "--steps", 1, "--run-dir", tmp_path, "--seeds", "3,5,6") == 2
    text = one_line(capfd.readouterr().err)
    assert f"error: seed 3: {tmp_path / 's3'} already contains a run" in text
    assert "seed 6, run 3 of 3" in text
    assert "mean after over 2 seeds: " in text
    assert f"report: paw-fast report {tmp_path / 's5'} {tmp_path / 's6'}" in text


def test_a_stop_signal_ends_the_sequence(model, tmp_path, monkeypatch, capfd):
    update = Learner.update

    def stop(*args):
        signal.raise_signal(signal.SIGTERM)
        return update(*args)

    monkeypatch.setattr(Learner, "update", stop)
    assert train(model, "--steps", 2, "--run-dir", tmp_path, "--seeds", 0, 1, 2) == 75
    text = one_line(capfd.readouterr().err)
    assert f"go on with: paw-fast train --resume {tmp_path / 's0'}" in text
    assert "stopped in seed 0; the others have not begun: repeat the command with --seeds 1 2" in text
    assert [path.name for path in tmp_path.iterdir()] == ["s0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds"], "--seeds needs values, such as --seeds 0 1 2"),
        (["--seeds", "0", "x"], "--seeds x: expected whole numbers from 0 to"),
        (["--seeds", "0", "-1"], "unknown option -1|cannot read the options|-1"),
        (["--seeds", "0", str(2**64)], f"--seeds {2**64}: expected whole numbers"),
        (["--seeds", "1", "1"], "--seeds 1 1: a seed is given twice"),
        (["--seeds", "1", "--seeds", "2"], "--seeds is given 2 times"),
        (["--seeds", "1", "2", "--seed", "3"], "--seeds and --seed exclude each other"),
        (["--seeds", "1", "2", "--resume", "runs/a"], "--seeds and --resume exclude each other"),
    ],
)
def test_seeds_that_are_refused(model, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        train(model, "--steps", 1, *options)
    assert list(tmp_path.iterdir()) == []


def evaluate(*arguments):
    return main.run(["eval", *map(str, arguments)])


def test_several_runs_give_a_table_and_a_list(runs, capfd):
    assert evaluate(runs / "s1", runs / "s3", "--tasks", 2, "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert [one["checkpoint"] for one in found] == [str(runs / s / "checkpoints" / "step_000001") for s in ("s1", "s3")]
    assert evaluate(runs / "s1", runs / "s3", "--tasks", 2) == 0
    assert "of 2" in capfd.readouterr().out


def test_one_run_gives_an_object_and_says_its_settings(runs, capfd):
    options = ["--tasks", 2, "--env.max-steps", 2, "--slots", 1, "--device", "cpu", "--best", "--json"]
    assert evaluate(runs / "s1", *options) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["mean_episode_length"] <= 2
    best = json.loads((runs / "s1" / "best.json").read_text())["step"]
    assert json.loads(out)["checkpoint"].endswith(f"step_{best:06d}")
    assert (
        "on alfworld: split unseen, 2 tasks at most, seed 0, temperature 0.4, device cpu, --env.max-steps"
        in one_line(err)
    )


def test_a_folder_of_runs_is_listed(runs):
    with pytest.raises(
        UserError, match=rf"{runs} is a folder of 2 runs: name one or more of s1, s3, such as {runs}/s1"
    ):
        evaluate(runs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env.max-steps", "0"], "--env.max-steps is 0"),
        (["--env.products", "5"], "env.products"),
        (["--env.max-steps"], "--env.max-steps needs a value"),
        (["--slots", "0"], "--slots is 0"),
        (["--device", "gpu"], "device"),
    ],
)
def test_eval_settings_that_are_refused(runs, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(runs / "s1", "--tasks", 2, *options)


def test_any_name_of_a_run_works(runs, tmp_path, capfd):
    """Square brackets are markup for the library that prints tables."""
    run = tmp_path / "a [/red] [bold]x 'q\" 日本 %d {x}"
    shutil.copytree(runs / "s1", run)
    assert evaluate(run, "--tasks", 1) == 0
    assert evaluate(run, runs / "s3", "--tasks", 1) == 0
    assert main.run(["report", str(run)]) == 0
    assert main.run(["play", str(run), "--episodes", "1"]) == 0
    assert main.run(["train", "--resume", str(run), "--steps", "2"]) == 0
    assert "[/red][bold]x" in "".join(capfd.readouterr().out.replace("│", "").split())
