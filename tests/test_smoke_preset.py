"""The preset `smoke`: what it is, and that a shortened run of it trains."""

import json

from paw_fast.cli import main
from paw_fast.config import load_preset
from paw_fast.runs.metrics import read_metrics


def test_the_smoke_preset_is_the_tiny_one_in_smaller_rooms():
    smoke, tiny = load_preset("smoke"), load_preset("tiny")
    assert (smoke.env.size, smoke.env.max_steps) == ("mini", 8)
    assert smoke.warm_start.episodes < tiny.warm_start.episodes / 3
    assert smoke.layout == tiny.layout
    assert smoke.model == tiny.model
    assert smoke.paw == tiny.paw
    assert smoke.steps * smoke.rollout.groups * smoke.rollout.group_size <= 0.2 * (
        tiny.steps * tiny.rollout.groups * tiny.rollout.group_size
    )


def test_a_short_run_of_the_smoke_preset(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = (
        "--steps 2 --warm-start.episodes 24 --env.num-train 40 --env.num-unseen 8 --eval-tasks 6 --eval-transitions 8 "
        "--rollout.groups 2 --rollout.group-size 2 --algo.minibatches 1"
    )
    run = tmp_path / "run"
    assert main.run(["train", "--env", "alfworld", "--preset", "smoke", "--run-dir", str(run), *options.split()]) == 0
    assert [row["step"] for row in read_metrics(run)] == [0, 1, 2]
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["final_eval"]["by_task_type"]) == {"pick_and_place_simple", "look_at_obj_in_light"}
