"""Runs with controls of the world-model loss: exact on resuming, fixed for a run, with side effects in every result."""

import json

import pytest
from small_runs import resume, train

from paw_fast.cli import main
from paw_fast.cli.start import retrieval_warning
from paw_fast.config import load_preset
from paw_fast.config.build import make_config
from paw_fast.errors import UserError
from paw_fast.runs.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("own_cache")


def numbers(run):
    skip = ("time/", "throughput/", "memory/", "idle/")
    return [{k: v for k, v in row.items() if not k.startswith(skip)} for row in read_metrics(run)]


@pytest.mark.parametrize(("target", "metric"), [("shuffled", "wm/changed_target_share"), ("noise", "wm/grad_norm")])
def test_a_run_with_a_control_resumes_exactly(model, tmp_path, capfd, target, metric):
    options = ["--layout", "window", "--paw.target", target, "--paw.selection", "surprise"]
    assert train(model, tmp_path / "whole", *options, "--steps", 2) == 0
    whole = numbers(tmp_path / "whole")
    assert all(row[metric] >= 0 for row in whole[1:])  # a random model sees nothing but "Nothing happens."
    assert train(model, tmp_path / "parted", *options, "--steps", 1) == 0
    with pytest.raises(UserError, match=f"was begun with {target}, and another value makes another run"):
        resume(tmp_path / "parted", "--steps", 2, "--paw.target", "actual")
    assert resume(tmp_path / "parted", "--steps", 2) == 0
    assert numbers(tmp_path / "parted") == whole
    assert [row["text/eval_loss"] > 1 for row in whole] == [True] * 3
    assert "text/eval_loss_growth" in whole[1]
    assert "side effects: " in capfd.readouterr().err
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["final_eval"]["text_loss"] == whole[2]["text/eval_loss"]
    assert main.run(["eval", str(tmp_path / "whole"), "--tasks", "2", "--json"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["text_loss"] == pytest.approx(whole[2]["text/eval_loss"])
    assert [one["won"] for one in found["tasks"]] == [bool(one) for one in summary["final_won"]]
    assert set(found["tasks"][0]) == {"id", "type", "won", "score", "actions"}


def test_search_warns_that_its_observations_are_retrieved():
    warning = retrieval_warning(load_preset("search-tiny"))
    assert warning is not None
    assert warning.startswith("warning: the observations of --env search are retrieved text")
    assert retrieval_warning(make_config("search-tiny", paw={"enabled": False})) is None
    assert retrieval_warning(load_preset("tiny")) is None


def test_a_text_that_cannot_be_read_is_told_before_anything_is_made(model, tmp_path):
    with pytest.raises(UserError, match=r"--eval-text .*nothing\.txt: cannot be read"):
        train(model, tmp_path / "run", "--eval-text", tmp_path / "nothing.txt")
    assert not (tmp_path / "run").exists()
