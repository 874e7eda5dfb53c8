"""The main command, end to end on a run of seconds: what it leaves, resuming after a kill, mistakes of the user."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from paw_fast.cli import main
from paw_fast.config import load_preset
from paw_fast.errors import UserError
from paw_fast.runs import run_dir
from paw_fast.runs.metrics import read_metrics

SHORT = [
    "--preset", "tiny", "--steps", "4", "--eval-every", "2", "--eval-tasks", "4", "--save-every", "1",
    "--env.num-train", "60", "--env.num-unseen", "12", "--env.max-steps", "6", "--rollout.groups", "2",
    "--rollout.group-size", "2", "--rollout.slots", "4", "--algo.minibatches", "2", "--algo.kl-coef", "0.01",
    "--warm-start.episodes", "40", "--warm-start.epochs", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


def start(args, env, cwd, sigint=signal.SIG_DFL):
    """The command in a process of its own, which has the default handler whatever this one inherited."""
    command = [sys.executable, "-m", "paw_fast.cli.main", *map(str, args)]
    return subprocess.Popen(
        command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """A run that was left alone."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    process = start(["train", "--env", "alfworld", *SHORT, "--run-dir", run], cache, run.parent)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return run


def numbers(run):
    """The metrics that must not depend on when or where a run was made."""
    skip = ("time/", "throughput/", "memory/", "idle/")
    return [{k: v for k, v in row.items() if not k.startswith(skip)} for row in read_metrics(run)]


def test_a_run_leaves_everything_it_should(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {"warm_start_success", "final_success", "num_eval_tasks", "wall_time_s"} <= set(summary)
    assert summary["num_eval_tasks"] == 4
    assert (summary["eval_split"], summary["eval_tasks_in_train"]) == ("unseen", 0)
    assert "<th>evaluated on</th><td>unseen</td>" in (finished / "report.html").read_text()
    assert run_dir.load_config(finished).steps == 4
    assert "torch" in json.loads((finished / "versions.json").read_text())
    assert [row["step"] for row in read_metrics(finished)] == [0, 1, 2, 3, 4]
    last = read_metrics(finished)[-1]
    assert last.keys() >= {
        "wm/lambda_mean", "wm/selected_share", "policy/kl", "policy/entropy", "optim/grad_norm", "time/update_s",
    }  # fmt: skip
    assert "> " in (finished / "episodes" / "step_000004.txt").read_text()
    assert "<html" in (finished / "report.html").read_text()
    assert list((finished / "tensorboard").iterdir())
    best = json.loads((finished / "best.json").read_text())["step"]
    kept = sorted({f"step_{step:06d}" for step in (best, 3, 4)})
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())] == kept


def test_a_killed_run_goes_on_to_the_same_metrics(finished, cache, tmp_path):
    run = tmp_path / "killed"
    process = start(["train", *SHORT, "--run-dir", run], cache, tmp_path)
    deadline = time.monotonic() + 400
    while not (run / "checkpoints" / "step_000002").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start(["train", "--resume", run], cache, tmp_path)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert numbers(run) == numbers(finished)


def test_ctrl_c_saves_says_how_to_go_on_and_loses_nothing(finished, cache, tmp_path):
    run = tmp_path / "interrupted"
    process = start(["train", *SHORT, "--run-dir", run], cache, tmp_path)
    deadline = time.monotonic() + 400
    while not (run / "checkpoints" / "step_000001").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert f"go on with: paw-fast train --resume {run}" in err
    assert "Traceback" not in err
    done = json.loads((run / "summary.json").read_text())["steps"]
    assert 1 <= done < 4
    assert (run / "checkpoints" / f"step_{done:06d}").is_dir()
    process = start(["train", "--resume", run], cache, tmp_path)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert numbers(run) == numbers(finished)


@pytest.mark.parametrize("sigint", [signal.SIG_DFL, signal.SIG_IGN])  # a script's `command &` leaves it ignored
def test_ctrl_c_in_the_set_up_says_how_to_begin_again(cache, tmp_path, sigint):
    run = tmp_path / "early"
    process = start(["train", *SHORT, "--warm-start.epochs", "50", "--run-dir", run], cache, tmp_path, sigint)
    seen = []
    for line in process.stderr:  # until the imitation has begun
        seen.append(line)
        if "imitation" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, "".join(seen) + err
    assert f"start again with: paw-fast train --resume {run}" in err
    assert "Traceback" not in err


def test_eval_prints_one_json_object_that_the_run_reported_too(finished, cache, tmp_path):
    process = start(["eval", finished, "--env", "alfworld", "--tasks", 4, "--json"], cache, tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["num_tasks"] == 4
    assert (result["split"], result["eval_tasks_in_train"]) == ("unseen", 0)
    assert result["success"] == json.loads((finished / "summary.json").read_text())["final_success"]
    assert 0 <= result["low"] <= result["success"] <= result["high"] <= 1


@pytest.mark.parametrize("split", ["train", "valid_seen"])
def test_eval_says_how_many_of_its_tasks_were_trained_on(finished, cache, monkeypatch, capsys, split):
    monkeypatch.setenv("XDG_CACHE_HOME", cache["XDG_CACHE_HOME"])
    assert main.run(["eval", str(finished), "--tasks", "2", "--split", split, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["eval_tasks_in_train"]) == (split, 2 if split == "train" else 0)
    assert main.run(["eval", str(finished / "warm_start"), "--tasks", "1", "--preset", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["eval_tasks_in_train"] is None


def test_a_run_with_more_steps_remembers_them_and_stays_in_its_folder(finished, cache, tmp_path):
    run = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    with pytest.raises(UserError, match="a run goes on in its own folder"):
        main.run(["train", "--resume", str(run), "--steps", "5", "--run-dir", str(tmp_path / "other")])
    with pytest.raises(UserError, match="nope"):
        main.run(["train", "--resume", str(run), "--steps", "5", "--env.template", "nope"])
    assert run_dir.load_config(run) == run_dir.load_config(finished)
    process = start(["train", "--resume", run, "--steps", "6"], cache, tmp_path)
    for line in process.stderr:
        if "step 5/6" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run_dir.load_config(run).steps == 6
    assert main_in(cache, ["train", "--resume", str(run)]) == 0
    assert read_metrics(run)[-1]["step"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "0"], "--temperature is 0.0, expected a number in"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--seed", "-1"], "--seed is -1"),
        (["--preset", "webshop-tiny"], "--preset webshop-tiny is for webshop; --env alfworld has"),
    ],
)
def test_an_evaluation_that_cannot_be_meant(finished, options, message):
    with pytest.raises(UserError, match=message):
        main.run(["eval", str(finished), *options])


def test_a_finished_run_and_a_damaged_checkpoint_say_so(finished, cache, tmp_path):
    process = start(["train", "--resume", finished], cache, tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "nothing to resume" in err
    damaged = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(damaged)], check=True)
    weights = damaged / "checkpoints" / "step_000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    process = start(["eval", damaged], cache, tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "step_000003, which is intact" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--env", "atari"], "alfworld"),
        (["train", "--env.sise", "small"], "unknown option --env.sise; did you mean --env.size?"),
        (["train", "--preset", "tinny"], "did you mean 'tiny'"),
        (["train", "--paw.alpha", "0"], "--paw.alpha is 0.0, expected a number in (0, 1]"),
        (["train", "--resume", "/nowhere"], "is not a run directory"),
        (["eval", "/nowhere"], "no checkpoint at /nowhere"),
        (["trane"], "did you mean 'train'"),
        (["report"], "needs one or more RUNS"),
        (["play", "--env", "shop"], "--env shop: no such environment; did you mean webshop?"),
        (["play", "--game", "/nowhere/game.tw-pddl"], "no game file at /nowhere/game.tw-pddl"),
    ],
)
def test_mistakes_are_one_line(args, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        main.run(args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_there(tmp_path):
    from paw_fast.models.policy import load_policy

    with pytest.raises(UserError, match="no such folder"):
        load_policy("./no/such/model", load_preset("tiny").model)


def test_help_of_every_command(capsys):
    for command in main.COMMANDS:
        try:
            status = main.run([command, "--help"])
        except SystemExit as e:
            status = e.code
        assert not status
        assert "paw-fast" in capsys.readouterr().out


@pytest.mark.parametrize("world_model", ["--paw.enabled", "--paw.no-enabled"])
@pytest.mark.parametrize("algo", ["grpo", "rloo", "gigpo", "ppo"])
def test_every_algorithm_takes_two_steps(finished, cache, tmp_path, algo, world_model):
    run = tmp_path / "run"
    options = ["--model", str(finished / "warm_start"), "--algo", algo, world_model, "--steps", "2"]
    assert main_in(cache, ["train", *SHORT, *options, "--run-dir", str(run)]) == 0
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert ("wm/loss" in rows[-1]) == (world_model == "--paw.enabled")
    assert ("critic/loss" in rows[-1]) == (algo == "ppo")
    assert 0 <= rows[-1]["wm/eval_probability"] <= 1


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_the_critic_goes_on_from_a_checkpoint_as_it_was(finished, cache, tmp_path, backbone):
    # A linear schedule would depend on the number of steps.
    options = ["--model", str(finished / "warm_start"), "--algo", "ppo", "--critic.backbone", backbone]
    common = [*SHORT, *options, "--optim.schedule", "constant", "--run-dir"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert main_in(cache, ["train", *common, str(whole), "--steps", "2"]) == 0
    assert main_in(cache, ["train", *common, str(parted), "--steps", "1"]) == 0
    assert main_in(cache, ["train", "--resume", str(parted), "--steps", "2"]) == 0
    skip = ("success/eval", "wm/eval", "reward/eval")  # measured after the first step too where that was the last
    for a, b in zip(numbers(whole), numbers(parted), strict=True):
        shared = {k for k in a.keys() & b.keys() if not k.startswith(skip)}
        assert {k: a[k] for k in shared} == {k: b[k] for k in shared}


def main_in(cache, args):
    """The command in this process, with the test's cache folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = cache["XDG_CACHE_HOME"]
    try:
        return main.run(args)
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def test_contradictions_are_refused_before_anything_is_loaded(tmp_path):
    for args, message in (
        (["--algo", "ppo", "--critic.backbone", "none"], "--algo ppo needs a critic"),
        (["--paw.alpha", "1.5"], "--paw.alpha is 1.5"),
        (["--paw.tau", "0"], "--paw.tau is 0"),
        (["--env", "search", "--preset", "tiny", "--algo", "gigpo"], "--algo gigpo"),
    ):
        with pytest.raises(UserError, match=message):
            main.run(["train", "--run-dir", str(tmp_path / "never"), *args])
        assert not (tmp_path / "never").exists()


def test_the_world_model_is_measured_by_the_eval_command(finished, cache, capsys):
    assert main_in(cache, ["eval", str(finished), "--tasks", "4", "--world-model", "--transitions", "9", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["world_model"]["num_transitions"] == 9
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["final_world_model"]["num_tokens"] > 0
    with pytest.raises(UserError, match="--transitions is 0"):
        main.run(["eval", str(finished), "--world-model", "--transitions", "0"])
