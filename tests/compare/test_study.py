"""The scripts in bench/study: their arms and options exist, and their tables come from a comparison's report."""

import json
import sys
from pathlib import Path

import made_runs
import pytest

from paw_fast.cli.compare import read_seeds, take_options
from paw_fast.compare.arms import arm_configs, find_arms
from paw_fast.compare.plan import make_plan, write_plan
from paw_fast.compare.report import write_reports
from paw_fast.config import load_preset
from paw_fast.config.build import change_config

STUDY = Path(__file__).parents[2] / "bench" / "study"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    import ablations
    import study

    yield study, ablations
    for name in ("ablations", "study"):
        sys.modules.pop(name)


@pytest.fixture
def comparison(scripts, tmp_path):
    study, _ = scripts
    base, arms = change_config(load_preset("smoke"), steps=2), find_arms(["rl", "paw"])
    plan = make_plan(tmp_path / "out", arms, range(3), arm_configs(arms, base), "per-seed", 1)
    write_plan(plan, "")
    for run in plan.runs:
        made_runs.write_made_run(run.config, tasks=lambda step: ["a", "b"])
        path = run.folder / "summary.json"
        summary = json.loads(path.read_text())
        gaps = [{"action_gap": gap} for gap in (0.1, 0.1 + summary["final_success"] / 2)]
        path.write_text(json.dumps(summary | {"warm_start_world_model": gaps[0], "final_world_model": gaps[1]}))
    write_reports(plan, 0.05, "")
    report = json.loads((plan.out / "report.json").read_text())
    return study.Comparison(("0.2",), plan.out, [], report)


def test_rows_say_the_difference_to_rl(scripts, comparison):
    study, _ = scripts
    rl, paw = study.rows(comparison)
    pair = comparison.report["pairs"][0]["success"]
    assert (rl[:2], rl[4]) == (("0.2", "rl"), "-")
    assert paw[:2] == ("0.2", "paw")
    assert paw[4].startswith(f"{100 * pair['value']:+.1f} ({100 * pair['low']:+.1f} to ")
    assert len(paw) == len(study.HEADS) + 1


def test_the_action_gap_is_related_to_the_gain(scripts, comparison):
    study, _ = scripts
    text = study.action_gap_and_gain([comparison])
    assert "over 6 runs: correlation 1.00" in text  # the made gaps grow by half of the success


def test_groups_without_success_are_counted(scripts, comparison):
    study, _ = scripts
    path = comparison.folder / "rl" / "s0" / "tasks.jsonl"
    path.write_text(path.read_text().replace('"won": [1, 1]', '"won": [0, 2]', 1))
    assert study.without_success(comparison) == pytest.approx((0.5 + 0 + 0) / 3)


@pytest.mark.parametrize("env", ["alfworld", "webshop"])
def test_options_are_those_of_compare(scripts, env):
    study, _ = scripts
    options = study.parser("").parse_args(["--out", "x", "--env", env, "--train", "--eval-tasks 7"])
    own, rest = take_options(study.base(options))
    assert read_seeds(own.seeds) == [10, 11, 12, 13, 14]
    assert rest == ["--preset", study.PRESETS[env], "--algo", "grpo", "--steps", "20", "--eval-tasks", "7"]
    config = load_preset(study.PRESETS[env])
    assert (config.env.name, config.layout) == (env, "window")
    assert config.env.history >= config.env.max_steps


@pytest.mark.parametrize("name", ["alpha", "tau"])
def test_sweeps_change_one_setting_of_paw(scripts, tmp_path, name):
    _, ablations = scripts
    arms = find_arms(ablations.arms_of(name, tmp_path).split(","))
    configs = arm_configs(arms, load_preset("tiny-window"))
    assert [getattr(config.paw, name) for config in list(configs.values())[2:]] == list(ablations.SETS[name])
    assert all(arm in ("rl", "paw") or arm.startswith(f"{name}-") for arm in configs)


def test_parts_are_arms(scripts, tmp_path):
    _, ablations = scripts
    assert len(find_arms(ablations.arms_of("parts", tmp_path).split(","))) == 9
