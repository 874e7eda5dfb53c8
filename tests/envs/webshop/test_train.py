"""Tests `paw-fast train` and `eval` on WebShop, from warm start to report."""

import json

from paw_fast.cli import main
from paw_fast.runs import run_dir
from paw_fast.runs.metrics import read_metrics

SHORT = [
    "--steps", "2", "--eval-every", "1", "--eval-tasks", "4", "--env.num-products", "400", "--rollout.groups", "2",
    "--rollout.group-size", "2", "--rollout.slots", "4", "--algo.minibatches", "1", "--warm-start.episodes", "60",
]  # fmt: skip


def test_run_from_warm_start_to_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main.run(["train", "--env", "webshop", *SHORT, "--run-dir", "run"]) == 0
    captured = capsys.readouterr()
    assert "preset tiny: no CUDA device was found" in captured.out + captured.err
    config = run_dir.load_config(tmp_path / "run")
    assert (config.env.name, config.env.max_steps) == ("webshop", 12)
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(0 <= row["reward/eval_score_mean"] <= 1 for row in rows)
    assert 0 <= rows[-1]["reward/score_mean"] <= 1
    assert rows[-1]["episode/cut_rate"] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_eval_tasks"] == 4
    assert "click[" in (tmp_path / "run" / "episodes" / "step_000002.txt").read_text()
    assert main.run(["eval", "run", "--tasks", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["env"], result["num_tasks"]) == ("webshop", 3)
    assert set(result) >= {"mean_score", "success", "by_task_type"}
