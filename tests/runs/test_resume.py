"""Tests of stopping, resuming and locking a run, in this process and with the smallest settings."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import SETTINGS, resume, train

from paw_fast.cli import main, settings
from paw_fast.config import algo_config, load_preset
from paw_fast.config.resume import MAY_CHANGE, may_change
from paw_fast.errors import UserError
from paw_fast.evaluation import world_model
from paw_fast.learner import Learner
from paw_fast.learner.optim import MasterAdamW
from paw_fast.models import tiny
from paw_fast.models.policy import load_policy
from paw_fast.runs import checkpoint as checkpoints
from paw_fast.runs import run_dir
from paw_fast.runs.checkpoint import Checkpoint
from paw_fast.runs.metrics import read_metrics
from paw_fast.runs.resume import check_training_state
from paw_fast.runs.stage_timer import StageTimer
from paw_fast.sft.warm_start import imitate

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def whole(own_cache, model, tmp_path_factory):
    """A finished run of two steps. Tests that change it must copy it."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(model, run, "--steps", 2) == 0
    return run


@pytest.fixture
def copied(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    return run


def numbers(run):
    """The metrics that do not depend on the time or machine of a run."""
    skip = ("time/", "throughput/", "memory/", "idle/")
    return [{k: v for k, v in row.items() if not k.startswith(skip)} for row in read_metrics(run)]


def learning_rates(run):
    return [row["optim/learning_rate"] for row in read_metrics(run)[1:]]


# ------------------------------------------------------------------------------------------------- stopping


@pytest.fixture
def signal_at(monkeypatch):
    """`signal_at(stage, number, signum)` raises the signal when a stage starts for the given time."""

    def arrange(stage, number, signum):
        original, seen = StageTimer.__call__, []

        def call(self, name):
            if name == stage:
                seen.append(name)
                if len(seen) == number:
                    signal.raise_signal(signum)
            return original(self, name)

        monkeypatch.setattr(StageTimer, "__call__", call)

    return arrange


@pytest.mark.parametrize(
    ("stage", "number", "signum", "done"),
    [
        ("generate", 1, signal.SIGTERM, 0),  # in the evaluation before training
        ("rollout", 2, signal.SIGHUP, 1),
        ("score", 3, signal.SIGUSR1, 1),
        ("update", 1, signal.SIGTERM, 1),
        ("sync", 1, signal.SIGINT, 1),
        ("evaluate", 2, signal.SIGTERM, 1),
    ],
)
def test_a_run_stopped_in_any_phase_resumes_to_the_same_metrics(
    whole, model, tmp_path, signal_at, monkeypatch, stage, number, signum, done
):
    run = tmp_path / "run"
    signal_at(stage, number, signum)
    assert train(model, run, "--steps", 2) == (130 if signum == signal.SIGINT else 75)
    assert json.loads((run / "summary.json").read_text())["steps"] == done
    assert (run / "report.html").is_file()
    monkeypatch.undo()
    assert resume(run) == 0
    assert numbers(run) == numbers(whole)


def test_a_stop_while_the_world_model_is_measured(whole, model, tmp_path, monkeypatch):
    """The evaluation after the first step is repeated, and its row written, when the run is resumed."""
    original, calls = world_model.predict, []

    def predict(*args):
        calls.append(True)
        if len(calls) == 3:  # two passes per measurement
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(world_model, "predict", predict)
        assert train(model, run, "--steps", 2) == 75
    assert [row["step"] for row in read_metrics(run)] == [0]
    assert checkpoints.find_checkpoint(run).name == "step_000001"
    assert resume(run) == 0
    assert numbers(run) == numbers(whole)


def test_a_stop_during_set_up_prints_the_resume_command(model, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    make = settings.load_preset  # anything before the set-up
    monkeypatch.setattr(settings, "load_preset", lambda *args: (signal.raise_signal(signal.SIGTERM), make(*args))[1])
    assert train(model, run, "--steps", 1) == 75
    assert f"start again with: paw-fast train --resume {run}" in " ".join(capfd.readouterr().err.split())
    monkeypatch.undo()
    assert resume(run) == 0


def children_of(process):
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create, which only Linux has")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_worker_processes_end_with_the_trainer(model, tmp_path, signum):
    """A batch system sends SIGTERM to all processes: the workers continue until the trainer has saved and ends them.

    If the trainer is killed by SIGKILL, the workers notice and exit.
    """
    run = tmp_path / "run"
    args = [*SETTINGS, "--model", model, "--run-dir", run, "--steps", "500", "--rollout.placement", "process"]
    command = [sys.executable, "-m", "paw_fast.cli.main", "train", *map(str, args)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as trainer:
        try:
            for line in trainer.stderr:
                if "step 1/500" in line:
                    break
            workers = children_of(trainer)
            assert workers
            os.killpg(trainer.pid, signum) if signum == signal.SIGTERM else trainer.kill()
            err = trainer.stderr.read()  # returns when no process holds the pipe any more
            assert trainer.wait(60) == (75 if signum == signal.SIGTERM else -signal.SIGKILL), err
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(trainer.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if signum == signal.SIGTERM:
        assert "restarting it" not in err
        assert checkpoints.find_checkpoint(run).name == f"step_{read_metrics(run)[-1]['step']:06d}"


def test_a_failed_engine_is_a_user_error(copied, monkeypatch):
    from paw_fast.rollout.engines.base import EngineError
    from paw_fast.rollout.worker import LocalRolloutWorker

    def fail(self, version):
        raise EngineError("waited 1 s for the generator")

    monkeypatch.setattr(LocalRolloutWorker, "update_weights", fail)
    with pytest.raises(UserError, match=r"^waited 1 s for the generator; go on with --resume .*/run$"):
        resume(copied, "--steps", 3)


def test_a_signal_stops_an_evaluation(whole, monkeypatch, capfd):
    from paw_fast.cli import eval

    evaluate = eval.evaluate

    def interrupted(*args):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*args)

    monkeypatch.setattr(eval, "evaluate", interrupted)
    assert main.run(["eval", str(whole), "--tasks", "2"]) == 75
    assert "begin it again" in capfd.readouterr().err


# ----------------------------------------------------------------------------------------- settings on resuming


def test_optimizer_settings_given_on_resuming_are_used_and_saved(copied, capfd):
    assert resume(copied, "--steps", 3, "--optim.learning-rate", 0.01) == 0
    assert learning_rates(copied) == [1e-3, 1e-3, 0.01]
    assert run_dir.load_config(copied).optim.learning_rate == 0.01
    output = " ".join(capfd.readouterr().err.split())
    assert "changed: --optim.learning-rate 0.001 -> 0.01, --steps 2 -> 3" in output


def test_changed_settings_reach_every_group_of_both_optimizers():
    """The saved state is restored first, then the new settings are applied with the factor of the schedule."""
    base = load_preset("tiny")
    base = dataclasses.replace(
        base, algo=algo_config("ppo", base.algo), steps=4,
        optim=dataclasses.replace(base.optim, schedule="linear"),
    )  # fmt: skip
    optim = dataclasses.replace(base.optim, learning_rate=0.5, beta1=0.1, beta2=0.2, weight_decay=0.3)
    for backbone in ("own", "shared"):
        critic = dataclasses.replace(base.critic, backbone=backbone, learning_rate=0.25)
        changed = dataclasses.replace(base, optim=optim, critic=critic)
        policy = load_tiny()
        saved = Learner(policy, None, dataclasses.replace(changed, optim=base.optim, critic=dataclasses.replace(
            critic, learning_rate=0.001)))  # fmt: skip
        saved.optimizer.step()
        saved.scheduler.step()
        saved.scheduler.step()
        learner = Learner(policy, None, changed)
        learner.optimizer.load_state_dict(saved.optimizer.state_dict())
        learner.scheduler.load_state_dict(saved.scheduler.state_dict())
        learner.critic.load_state_dict(saved.critic.state_dict())
        learner.optimizer.step()  # without gradients, only so that the scheduler can step
        learner.apply_settings()
        factor = learner.scheduler.lr_lambdas[0](2)
        rates = [0.5 * factor] if backbone == "own" else [0.5 * factor, 0.25]  # the critic's rate is constant
        groups = list(learner.optimizer.param_groups)
        assert [group["lr"] for group in groups] == rates == learner.scheduler.get_last_lr()
        if backbone == "own":
            (optimizer,) = learner.critic.own_optimizers()
            assert isinstance(optimizer, MasterAdamW)
            (group,) = optimizer.param_groups
            assert group["lr"] == 0.25
            groups.append(group)
        assert all((*group["betas"], group["weight_decay"]) == (0.1, 0.2, 0.3) for group in groups)
        learner.scheduler.step()
        assert learner.scheduler.get_last_lr()[0] == 0.5 * learner.scheduler.lr_lambdas[0](3)


def load_tiny():
    from paw_fast.models.policy import Policy

    return Policy(tiny.build_model(60, hidden=16, layers=1, heads=2, kv_heads=1, ffn=16), None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "other"], r"--model other: .* was begun with /"),
        (["--seed", "7"], "--seed 7: .* was begun with 0"),
        (["--layout", "window"], "--layout window: .* begun with trajectory"),
        (["--env.game-seed", "5"], r"--env\.game-seed 5: .* begun with 0"),
        (["--env.max-steps", "4"], r"--env\.max-steps 4: .* begun with 3"),
        (["--env.history", "1"], r"--env\.history 1: "),
        (["--eval-tasks", "3"], "--eval-tasks 3: .* begun with 2"),
        (["--rollout.eval-temperature", "1"], r"--rollout\.eval-temperature 1\.0: .* begun with 0\.4"),
        (["--algo", "rloo"], "--algo rloo: .* begun with grpo"),
        (["--model.dtype", "bfloat16"], r"--model\.dtype bfloat16: .* begun with auto"),
        (["--warm-start.layers", "1"], r"--warm-start\.layers 1: .* begun with 2"),
    ],
)
def test_settings_that_define_the_run_cannot_change(whole, options, words):
    before = (whole / "config.toml").read_bytes(), (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=words) as error:
        resume(whole, "--steps", 3, *options)
    assert "\n" not in str(error.value)
    assert ((whole / "config.toml").read_bytes(), (whole / "metrics.jsonl").read_bytes()) == before


def test_unlisted_settings_cannot_change():
    assert not may_change("something_new")
    assert not may_change("env.something_new")
    assert list(MAY_CHANGE)[-1] == "*"
    assert MAY_CHANGE["*"] is False


# -------------------------------------------------------------------------------------------- missing files


def test_metrics_are_kept_if_the_checkpoints_are_missing(copied):
    (copied / "checkpoints").rename(copied / "elsewhere")
    rows = (copied / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"metrics of 2 steps but no checkpoint in .*checkpoints: restore that folder"):
        resume(copied, "--steps", 3)
    assert (copied / "metrics.jsonl").read_bytes() == rows


def test_unreadable_checkpoint_folder_is_an_error(copied, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints.os, "scandir", denied)
    rows = (copied / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"cannot list the checkpoints in .*: Permission denied"):
        resume(copied, "--steps", 3)
    assert (copied / "metrics.jsonl").read_bytes() == rows


def test_a_run_killed_before_its_first_checkpoint_starts_over(whole, model, tmp_path):
    run = tmp_path / "run"
    assert train(model, run, "--steps", 0) == 0
    shutil.rmtree(run / "checkpoints")
    assert resume(run, "--steps", 2) == 0
    assert numbers(run) == numbers(whole)


def test_missing_files_of_a_finished_run_are_written(copied):
    summary = json.loads((copied / "summary.json").read_text())
    for names in (["summary.json", "report.html"], ["summary.json"], ["report.html"]):
        for name in names:
            (copied / name).unlink()
        assert resume(copied) == 0
        got = json.loads((copied / "summary.json").read_text())
        assert got.pop("wall_time_s") == pytest.approx(summary["wall_time_s"], abs=5)
        assert got == {key: value for key, value in summary.items() if key != "wall_time_s"}
        assert "<html" in (copied / "report.html").read_text()
    with pytest.raises(UserError, match="nothing to resume"):
        resume(copied)


def test_an_outdated_summary_is_replaced(copied):
    """The run was resumed for more steps and killed after the last one."""
    old = json.loads((copied / "summary.json").read_text())
    assert resume(copied, "--steps", 3) == 0
    (copied / "summary.json").write_text(json.dumps(old))
    assert resume(copied) == 0
    assert json.loads((copied / "summary.json").read_text())["steps"] == 3


# ------------------------------------------------------------------------------------------ locks and folders


def test_a_locked_run_is_refused_until_its_process_is_killed(copied):
    program = (
        "import time; from pathlib import Path; from paw_fast.runs import run_dir\n"
        f"run_dir.lock(Path({str(copied)!r})); "
        "print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        before = (copied / "metrics.jsonl").read_bytes()
        with pytest.raises(UserError, match=rf"in use by process {other.pid} on .* since \d+-") as error:
            resume(copied, "--steps", 3)
        assert "\n" not in str(error.value)
        assert main.run(["report", str(copied)]) == 0
        assert (copied / "metrics.jsonl").read_bytes() == before
        other.kill()
    assert resume(copied, "--steps", 3) == 0


def test_runs_started_in_the_same_second_get_different_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_dir.time, "strftime", lambda *args: "-20260101-000000")
    made = [run_dir.create_run(load_preset("tiny")) for _ in range(3)]
    for run in made:
        run_dir.unlock(run)
    assert [run.name for run in made] == [f"alfworld-grpo-paw-s0-20260101-000000{more}" for more in ("", "-2", "-3")]
    assert all((run / "config.toml").is_file() for run in made)


@pytest.mark.parametrize("gone", ["moved", "deleted"])
def test_a_run_stops_if_its_folder_is_moved_or_deleted(model, tmp_path, monkeypatch, gone):
    run, update = tmp_path / "run", Learner.update

    def lose(*args):
        run.rename(tmp_path / "elsewhere") if gone == "moved" else shutil.rmtree(run)
        return update(*args)

    monkeypatch.setattr(Learner, "update", lose)
    with pytest.raises(UserError, match="was moved, replaced or deleted while the run was writing to it") as error:
        train(model, run, "--steps", 2)
    assert "\n" not in str(error.value)
    left = {path.name for path in run.rglob("*")} if run.exists() else set()
    assert left <= {"passages.jsonl"}  # nothing that looks like a run


# ------------------------------------------------------------------------------------- non-finite numbers


def test_skipped_steps_warn_and_three_in_a_row_stop_the_run(model, whole, tmp_path, monkeypatch, capfd):
    run, clip, calls = tmp_path / "run", MasterAdamW.clip_gradients, []

    def infinite(self, norm):
        calls.append(True)
        found = clip(self, norm)
        return found if len(calls) <= 2 else found * math.inf  # two optimizer steps a training step

    with monkeypatch.context() as patch:
        patch.setattr(MasterAdamW, "clip_gradients", infinite)
        words = "no gradient was finite in the training steps 2 to 4: .* go on from step 1 with --resume"
        with pytest.raises(UserError, match=words) as error:
            train(model, run, "--steps", 9, "--save-every", 3)
    assert "\n" not in str(error.value)
    output = " ".join(capfd.readouterr().err.split())
    assert "warning: step 2: 2 of 2 optimizer steps were left out" in output
    assert [row["optim/skipped_steps"] for row in read_metrics(run)[1:]] == [0, 2, 2]
    assert [path.name for path in checkpoints.list_checkpoints(run)] == ["step_000000", "step_000001"]
    episodes = [json.loads(line) for line in (run / "skipped_batch.jsonl").read_text().splitlines()]
    assert len(episodes) == 4
    turn = episodes[0]["transitions"][0]
    assert len(turn["action_ids"]) == len(turn["old_logprobs"]) > 0
    assert resume(run, "--steps", 2) == 0  # from the state before those steps
    assert numbers(run) == numbers(whole)


def test_skipped_steps_of_the_critic_are_counted(model, tmp_path, monkeypatch):
    clip = MasterAdamW.clip_gradients
    monkeypatch.setattr(MasterAdamW, "clip_gradients", lambda self, norm: clip(self, norm) * math.nan)
    assert train(model, tmp_path / "run", "--steps", 1, "--algo", "ppo") == 0
    assert read_metrics(tmp_path / "run")[1]["optim/skipped_steps"] == 4  # two of the policy, two of the critic


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_with_non_finite_parameters_is_refused(model, tmp_path, value):
    policy = load_policy(model, load_preset("tiny").model)
    with torch.no_grad():
        policy.model.model.layers[0].mlp.up_proj.weight[3, 2] = value
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"the parameter model\.layers\.0\.mlp\.up_proj\.weight contains NaN or infinite"
    ):
        load_policy(tmp_path, load_preset("tiny").model)


def test_a_diverging_warm_start_is_a_user_error():
    from paw_fast.learner.sequences import build_sequences
    from paw_fast.types import EpisodeId, Task, Trajectory, Transition

    policy = load_tiny()
    with torch.no_grad():
        policy.model.model.norm.weight[:] = math.nan
    turn = Transition((5, 6), (7, 1), (0.0, 0.0), (8, 9), (True, True), "c", "o", "", 0.0, True)
    sequences = build_sequences([Trajectory(Task("t"), EpisodeId(0, 0, 0), (turn,), 0.0, 0.0, True)], "trajectory")
    with pytest.raises(UserError, match=r"diverged .*step 1 is nan\): lower --warm-start\.learning-rate"):
        imitate(policy, sequences, [True], load_preset("tiny"), lambda done, loss: None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampler", None), ("sampler", {"drawn": 4, "seed": 0}), ("sampler", {"drawn": -1, "seed": 0, "num_tasks": 4}),
        ("summary", []), ("elapsed_s", None), ("elapsed_s", float("nan")), ("pending", 3), ("skipped_in_a_row", "0"),
    ],
)  # fmt: skip
def test_a_state_that_training_cannot_go_on_with_is_one_line(name, value):
    sampler = {"drawn": 4, "seed": 0, "num_tasks": 4}
    extra = {"sampler": sampler, "summary": {}, "elapsed_s": 1.5, "pending": None, "skipped_in_a_row": 0}
    check_training_state(Checkpoint(Path("run/checkpoints/step_000001"), 1, extra))
    for wrong in (extra | {name: value}, {k: v for k, v in extra.items() if k != name}):
        if name in ("pending", "skipped_in_a_row") and name not in wrong:  # runs of earlier versions have none
            check_training_state(Checkpoint(Path("run"), 1, wrong))
            continue
        with pytest.raises(UserError, match=f"step_000001 cannot be resumed: state.json lacks a valid {name}; "):
            check_training_state(Checkpoint(Path("run/checkpoints/step_000001"), 1, wrong))


def test_a_nan_reward_is_an_error_that_names_the_task(model, tmp_path, monkeypatch):
    from paw_fast.envs.alfworld.env import AlfworldEnv

    step = AlfworldEnv.step
    monkeypatch.setattr(
        AlfworldEnv, "step", lambda self, command: dataclasses.replace(step(self, command), reward=math.nan)
    )
    with pytest.raises(UserError, match=r"the environment alfworld gave the reward nan in the task .*/trial_"):
        train(model, tmp_path / "run", "--steps", 1)
