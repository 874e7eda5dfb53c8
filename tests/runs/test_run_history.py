"""Tests of what a resumed run checks of its own past, and of the best checkpoint."""

import json
import shutil

import pytest
from small_runs import resume, train

from paw_fast.errors import UserError
from paw_fast.runs import checkpoint as checkpoints
from paw_fast.runs.metrics import read_metrics
from paw_fast.runs.retention import best_checkpoint
from paw_fast.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def whole(own_cache, model, tmp_path_factory):
    """A finished run of one step. Tests that change it must copy it."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(model, run, "--steps", 1) == 0
    return run


@pytest.fixture
def copied(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    return run


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("\nseed = 0\ntoken", "\nseed = 3\ntoken", "seed = 3, but the run began with 0"),
        ('layout = "trajectory"', 'layout = "window"', "layout = window, but the run began with trajectory"),
        ("num_train = 12", "num_train = 13", "env.num_train = 13, but the run began with 12"),
        ("eval_tasks = 2", "eval_tasks = 3", "eval_tasks = 3, but the run began with 2"),
    ],
)
def test_an_edited_setting_that_makes_another_run_is_refused(copied, old, new, name):
    edit(copied / "config.toml", old, new)
    before = sorted(copied.rglob("*"))
    with pytest.raises(UserError, match=f"config.toml has {name}: restore that value"):
        resume(copied, "--steps", 2)
    assert sorted(copied.rglob("*")) == before


def test_an_edited_setting_that_may_change_is_applied(copied):
    edit(copied / "config.toml", "learning_rate = 0.001", "learning_rate = 0.0005")
    assert resume(copied, "--steps", 2) == 0
    assert read_metrics(copied)[-1]["optim/learning_rate"] == 0.0005


@pytest.mark.parametrize("rows", [[], [0], [1]])
def test_metrics_that_lack_steps_are_said(copied, capfd, rows):
    kept = [line for line in (copied / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] in rows]
    (copied / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    assert resume(copied, "--steps", 2) == 0
    missing = {(): "2 of the steps 0 to 1", (0,): "step 1", (1,): "step 0"}[tuple(rows)]
    assert f"metrics.jsonl has no row for {missing}, though the checkpoint has 1 steps" in capfd.readouterr().err
    assert [row["step"] for row in read_metrics(copied)] == [*rows, 2]


def test_whole_metrics_give_no_warning(copied, capfd):
    assert resume(copied, "--steps", 2) == 0
    assert "metrics.jsonl" not in capfd.readouterr().err
    assert len(json.loads((copied / "versions.json").read_text())["starts"]) == 2


def test_a_checkpoint_that_was_being_replaced_is_resumed(copied):
    root = copied / "checkpoints"
    newest = checkpoints.find_checkpoint(copied)
    shutil.rmtree(root / "step_000000")
    newest.rename(root / f".tmp-old-{newest.name}")
    assert resume(copied, "--steps", 2) == 0
    assert [row["step"] for row in read_metrics(copied)] == [0, 1, 2]


def test_a_state_that_is_saved_is_not_saved_again(model, tmp_path, monkeypatch):
    """A signal right after a checkpoint finds nothing to save: replacing it could lose it."""
    saved = []
    save = checkpoints.save_checkpoint
    monkeypatch.setattr(
        "paw_fast.distributed.leader.save_checkpoint", lambda *args, **kw: saved.append(kw) or save(*args, **kw)
    )
    run, step = Trainer.run, tmp_path / "run"

    def twice(self):
        run(self)
        before = len(saved)
        self.save()
        assert len(saved) == before

    monkeypatch.setattr(Trainer, "run", twice)
    assert train(model, step, "--steps", 1) == 0
    assert [kw["step"] for kw in saved] == [0, 1]


def successes(monkeypatch, rates):
    """The evaluations before training and after each step give these success rates."""
    from paw_fast.evaluation.success import EvalResult

    original, left = Trainer.evaluate, list(rates)

    def evaluate(self, label, *more):
        _, quality = original(self, label, *more)
        return EvalResult(left.pop(0), 4, {}, 3.0), quality

    monkeypatch.setattr(Trainer, "evaluate", evaluate)


def test_the_best_checkpoint_survives_later_steps_and_a_resume(model, tmp_path, monkeypatch):
    run = tmp_path / "run"
    successes(monkeypatch, [0, 2, 1, 2, 1])
    assert train(model, run, "--steps", 3, "--keep-checkpoints", 1, "--save-every", 3) == 0
    assert json.loads((run / "best.json").read_text()) == {"step": 1, "success": 0.5, "num_tasks": 2}
    assert resume(run, "--steps", 4) == 0  # a tie keeps the earlier one
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000001", "step_000004"]
    assert best_checkpoint(run).name == "step_000001"
    checkpoints.verify_checkpoint(best_checkpoint(run))
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["best_step"], summary["best_success"], summary["final_success"]) == (1, 0.5, 0.25)


def test_without_keep_best_only_the_newest_are_kept(model, tmp_path, monkeypatch):
    run = tmp_path / "run"
    successes(monkeypatch, [3, 1, 0])
    assert train(model, run, "--steps", 2, "--keep-checkpoints", 1, "--no-keep-best") == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000002"]
    assert not (run / "best.json").exists()
