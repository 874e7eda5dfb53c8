"""The folder of a comparison and its processes, with a program in place of training (see `made_runs`)."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import made_runs
import pytest

from paw_fast.compare.arms import arm_configs, find_arms
from paw_fast.compare.plan import default_folder, make_plan, write_plan
from paw_fast.compare.run_table import render, summary_line
from paw_fast.compare.schedule import Scheduler, State, train_arguments
from paw_fast.config import load_preset
from paw_fast.config.build import change_config
from paw_fast.errors import UserError
from paw_fast.runs import console, stop_signals
from paw_fast.runs import run_dir as runs
from paw_fast.runs.task_record import read_tasks

ROOT = Path(made_runs.__file__).parents[2]
COMMAND = (sys.executable, made_runs.__file__)


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("MADE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MADE_RUNS", raising=False)
    return lambda: (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []


def plan_of(out, arms="rl,paw", seeds=(0, 1), warm_starts="per-seed", jobs=1, **changes):
    base = change_config(load_preset("smoke"), steps=3, **changes)
    chosen = find_arms(arms.split(","))
    return make_plan(out, chosen, seeds, arm_configs(chosen, base), warm_starts, jobs)


def run(plan, jobs=2):
    write_plan(plan, "paw-fast compare")
    return Scheduler(plan, jobs, command=COMMAND).run()


def test_every_arm_has_every_seed_in_an_ordinary_run_directory(tmp_path, made):
    plan = plan_of(tmp_path / "out")
    assert run(plan) == []
    assert sorted(made()) == ["paw s0 --config", "paw s1 --config", "rl s0 --config", "rl s1 --config"]
    for planned in plan.runs:
        config = runs.load_config(planned.folder)
        assert (config.seed, config.warm_start.seed, config.run_dir) == (planned.seed, planned.seed, planned.folder)
        assert config.paw.enabled == (planned.arm == "paw")
    assert run(plan) == []
    assert len(made()) == 4  # finished runs are not touched


def test_a_shared_warm_start_is_that_of_the_options(tmp_path):
    plan = plan_of(tmp_path / "out", warm_starts="shared", warm_start={"seed": 7})
    assert {one.config.warm_start.seed for one in plan.runs} == {7}


def test_a_failed_run_does_not_stop_the_others_and_is_repeated(tmp_path, made, monkeypatch, capfd):
    monkeypatch.setenv("MADE_RUNS", "fail rl")
    failed = run(plan_of(tmp_path / "out"), jobs=1)
    assert [(job.run.arm, job.run.seed, job.why) for job in failed] == [
        ("rl", 0, "no luck today"), ("rl", 1, "no luck today"),
    ]  # fmt: skip
    text = " ".join(capfd.readouterr().err.split())
    assert "rl, seed 0: failed: no luck today (see" in text
    assert "paw, seed 1: done, success 10% before" in text
    monkeypatch.setenv("MADE_RUNS", "ok")
    assert run(plan_of(tmp_path / "out")) == []
    assert len(made()) == 6


def test_when_the_first_runs_all_fail_the_rest_is_not_begun(tmp_path, made, monkeypatch):
    monkeypatch.setenv("MADE_RUNS", "fail")
    with pytest.raises(UserError, match="the first 3 runs failed, the last one with: no luck today"):
        run(plan_of(tmp_path / "out", seeds=range(4)), jobs=1)
    assert len(made()) == 3


def test_a_stop_signal_reaches_the_runs_and_the_same_command_continues(tmp_path, made, monkeypatch):
    monkeypatch.setenv("MADE_RUNS", "hang")
    plan = plan_of(tmp_path / "out")
    main = os.getpid()

    def stop():
        while len(made()) < 2:
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(main, signal.SIGTERM)

    threading.Thread(target=stop).start()
    with stop_signals.handled(console.say), pytest.raises(stop_signals.Interrupted) as stopped:
        run(plan)
    assert stopped.value.status == 75
    assert "training" in plan.runs[0].log.read_text()
    monkeypatch.setenv("MADE_RUNS", "ok")
    assert run(plan_of(tmp_path / "out")) == []
    kinds = [line.split()[-1] for line in made()]
    assert (kinds.count("--config"), kinds.count("--resume")) == (4, 2)


def test_a_run_that_another_process_trains_is_refused(tmp_path):
    plan = plan_of(tmp_path / "out")
    write_plan(plan, "")
    code = (
        "import sys, time, pathlib; from paw_fast.runs import run_dir; run_dir.lock(pathlib.Path(sys.argv[1])); "
        "print('held', flush=True); time.sleep(60)"
    )
    import subprocess

    command = [sys.executable, "-c", code, str(plan.runs[0].folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            Scheduler(plan, 1, command=COMMAND).run()
        holder.kill()


# ----------------------------------------------------------------------------------------------- another command


def test_a_command_that_adds_seeds_or_arms_continues(tmp_path, made):
    assert run(plan_of(tmp_path / "out", seeds=(0,))) == []
    assert run(plan_of(tmp_path / "out", "rl,paw,echo", seeds=(0, 1))) == []
    assert len(made()) == 6
    about = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (about["seeds"], [arm["name"] for arm in about["arms"]]) == ([0, 1], ["rl", "paw", "echo"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": "rl,echo"}, "also holds the arm paw"),
        ({"seeds": (0, 2)}, "also holds the seed 1"),
        ({"warm_starts": "shared"}, "--warm-starts shared: .* was begun with per-seed"),
        (
            {"optim": {"learning_rate": 1.0}},
            "was begun with --optim.learning-rate 0.0003 for the arm rl, now 1.0: give the same command",
        ),
        ({"eval_tasks": 3, "env": {"max_steps": 5}}, "--env.max-steps 8 for the arm rl, now 5 .and 1 more"),
    ],
)
def test_a_different_command_is_refused_with_the_difference(tmp_path, changed, message):
    write_plan(plan_of(tmp_path / "out"), "")
    with pytest.raises(UserError, match=message):
        plan_of(tmp_path / "out", **changed)


def test_the_date_of_the_first_day_and_the_threads_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    first = plan_of(tmp_path / "out")
    write_plan(first, "")
    about = json.loads((tmp_path / "out" / "compare.json").read_text())
    about["chat_date"] = "2020-01-02"
    (tmp_path / "out" / "compare.json").write_text(json.dumps(about))
    for name in ("rl", "paw"):
        path = tmp_path / "out" / "settings" / f"{name}.toml"
        path.write_text(path.read_text().replace(first.configs["rl"].rollout.chat_date, "2020-01-02"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    again = plan_of(tmp_path / "out", jobs=2)
    assert again.threads == 3
    assert again.configs["paw"].rollout.chat_date == "2020-01-02"


def test_folders_that_hold_no_comparison_or_a_damaged_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no comparison"):
        plan_of(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare.json").write_text("{}\n{}")
    with pytest.raises(UserError, match="cannot read"):
        plan_of(tmp_path / "out")
    (tmp_path / "out" / "compare.json").write_text('{"seeds": [0]}')
    with pytest.raises(UserError, match="cannot be read"):
        plan_of(tmp_path / "out")


def test_the_default_folder_depends_on_the_arms_and_settings_alone():
    def folder(**changes):
        arms = find_arms(["rl", "paw"])
        return default_folder(arms, arm_configs(arms, change_config(load_preset("smoke"), **changes)), "per-seed")

    assert folder() == folder()
    assert folder() != folder(steps=3)
    assert folder().name.startswith("compare-alfworld-")


# ------------------------------------------------------------------------------------------------------ pairing


def test_arms_that_played_different_tasks_are_an_error(tmp_path):
    plan = plan_of(tmp_path / "out")
    write_plan(plan, "")
    for planned in plan.runs:
        odd = planned.arm == "paw" and planned.seed == 1
        made_runs.write_made_run(planned.config, tasks=lambda step, odd=odd: ["x", "z" if odd and step == 2 else "y"])
    with pytest.raises(UserError, match=r"rl/s1 and .*paw/s1 played different tasks in step 2: the tasks y and z"):
        Scheduler(plan, 1, command=COMMAND).run()


@pytest.mark.parametrize("what", ["lost", "weights", "episodes"])
def test_runs_that_cannot_be_paired_are_an_error(tmp_path, what):
    plan = plan_of(tmp_path / "out", seeds=(0,))
    write_plan(plan, "")
    for planned in plan.runs:
        made_runs.write_made_run(planned.config)
        (planned.folder / "warm_start").mkdir()
        (planned.folder / "warm_start" / "model.safetensors").write_bytes(b"weights")
    last = plan.runs[-1].folder
    tasks = (last / "tasks.jsonl").read_text()
    message = {
        "lost": "no record of step 3", "weights": "began with different warm starts", "episodes": "4 and 5 episodes",
    }[what]  # fmt: skip
    if what == "weights":
        (last / "warm_start" / "model.safetensors").write_bytes(b"others")
    else:
        lines = tasks.splitlines()[:2] if what == "lost" else [tasks.replace('"episodes": 4', '"episodes": 5')]
        (last / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        Scheduler(plan, 1, command=COMMAND).run()


def test_the_record_of_tasks_survives_a_kill_in_the_middle_of_a_line(tmp_path):
    from paw_fast.runs.task_record import write_tasks
    from paw_fast.types import EpisodeId, Task, Trajectory

    trajectory = Trajectory(Task("game 7"), EpisodeId(1, 0, 0), (), 0.0, 0.0, True)
    write_tasks(tmp_path, 1, [trajectory])
    whole = (tmp_path / "tasks.jsonl").read_bytes()
    (tmp_path / "tasks.jsonl").write_bytes(whole + whole[:9])
    write_tasks(tmp_path, 2, [trajectory, trajectory])
    write_tasks(tmp_path, 1, [trajectory, trajectory])
    task = trajectory.task.task_id
    assert read_tasks(tmp_path) == {1: ((task,), 2), 2: ((task,), 2)}
    assert read_tasks(tmp_path / "none") == {}


# ------------------------------------------------------------------------------------------------- what is shown


def test_the_table_has_an_arm_a_row_and_a_seed_a_column(tmp_path):
    from rich.console import Console

    plan = plan_of(tmp_path / "out")
    made_runs.write_made_run(plan.runs[0].config)
    scheduler = Scheduler(plan, 1)
    running = scheduler.jobs[1]
    running.state, running.began_s = State.RUNNING, 10.0
    running.run.folder.mkdir(parents=True)
    (running.run.folder / "metrics.jsonl").write_text('{"step": 2}\n{"step": 3, "x"')
    scheduler.jobs[0].seconds = 60.0
    scheduler.jobs[3].state = State.FAILED
    screen = Console(width=100)
    with screen.capture() as shown:
        screen.print(render(scheduler.jobs, now=40.0))
    lines = [" ".join(line.split()) for line in shown.get().splitlines()]
    final = json.loads((plan.runs[0].folder / "summary.json").read_text())["final_success"]
    assert lines[:3] == ["arm seed 0 seed 1", f"rl done {final:.0%} waiting", "paw step 2/3, 0:30 failed"]
    assert summary_line(scheduler.jobs, 40.0) == (
        "1 of 4 runs done; 1 failed; running: paw s0 step 2/3; about 1:30 left"  # 30 s of this one, 60 s of the other
    )


def test_what_only_a_command_line_may_allow_is_given_to_the_runs(tmp_path):
    plan = plan_of(tmp_path / "out", model={"path": "folder", "trust_remote_code": True})
    write_plan(plan, "")
    arguments = train_arguments(plan.runs[0])
    assert arguments[-1] == "--model.trust-remote-code"
    assert arguments[:2] == ["train", "--config"]
