"""`paw-fast report`: what it writes, and what it refuses."""

import dataclasses
import json

import pytest
import torch

from paw_fast.cli import main
from paw_fast.config import load_preset, to_toml
from paw_fast.errors import UserError
from paw_fast.models import tiny
from paw_fast.runs.checkpoint import save_checkpoint

TEXTS = ["You arrive at cabinet 1. On the cabinet 1, you see a mug 2, and a plate 1.", "go to cabinet 12", "look"] * 20


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of random models: a warm start and a checkpoint of step 2."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base, replace = load_preset("tiny", "alfworld"), dataclasses.replace
    config = replace(
        base, env=replace(base.env, num_train=12, num_unseen=4, max_steps=3), steps=2,
        rollout=replace(base.rollout, max_action_tokens=6, chat_date="2026-01-01"),
        model=replace(base.model, device="cpu"),
    )  # fmt: skip
    folder = tmp_path / "<run>"
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(config))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "success/rate": 0.5}) + "\n")
    tokenizer = tiny.train_tokenizer(TEXTS, 400)
    for seed in (1, 2):
        model = tiny.build_model(len(tokenizer), hidden=48, layers=1, heads=2, kv_heads=1, ffn=64, seed=seed)
        if seed == 1:
            model.save_pretrained(folder / "warm_start")
            tokenizer.save_pretrained(folder / "warm_start")
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    save_checkpoint(folder, 2, model=model, tokenizer=tokenizer, optimizer=optimizer, scheduler=scheduler)
    return folder


def test_a_report_with_its_episodes(run, capsys):
    assert main.run(["report", str(run), "--episodes", "3"]) == 0
    assert capsys.readouterr().out.split() == [str(run / "episodes.html"), str(run / "report.html")]
    page = (run / "episodes.html").read_text(encoding="utf-8")
    assert page.count('<section class="episode"') == 3
    assert "before training (warm start) and now (step_000002)" in page
    assert "<run>" not in page
    assert 'href="episodes.html"' in (run / "report.html").read_text(encoding="utf-8")


def test_without_episodes_there_is_a_report_alone(run, capsys):
    assert main.run(["report", str(run)]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.html")]
    assert not (run / "episodes.html").exists()
    assert "episodes.html" not in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["report"], "paw-fast report needs one or more RUNS"),
        (["report", "RUN", "--episodes", "-1"], "--episodes is -1, expected 0 or more"),
        (["report", "RUN", "--episodes", "2", "--episodes-per-task", "0"], "expected 1 or more"),
        (["report", "RUN", "RUN", "--episodes", "2"], "--episodes shows one run, got 2"),
        (["report", "RUN", "--episode", "2"], "did you mean --episodes"),
    ],
)
def test_what_is_refused(run, args, words):
    with pytest.raises(UserError, match=words) as error:
        main.run([str(run) if arg == "RUN" else arg for arg in args])
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()
