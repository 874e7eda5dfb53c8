"""Tests the command line on the search environment: play, retriever index and serve, train and eval."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from rich.console import Console
from search_extras import need

from paw_fast.cli import main
from paw_fast.cli.play import play
from paw_fast.errors import UserError
from paw_fast.runs.metrics import read_metrics

need("bm25s", "Stemmer")


@pytest.fixture(autouse=True)
def _separate_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run_episode(env, *lines):
    """Runs `paw-fast play` with `lines` as standard input; returns (won, the printed text)."""
    out = io.StringIO()
    won = play(env, env.tasks("unseen")[0], Console(file=out, width=500), io.StringIO("\n".join(lines) + "\n"))
    return won, out.getvalue()


def test_play_command(search_env):
    task = search_env.tasks("unseen")[0]
    golden, start = task.info["golden"][0], task.info["supporting"][0]
    won, text = run_episode(search_env, "find it", "?", f"search[{start}]", f"answer[{golden}]")
    assert won
    assert "You won, in 2 steps." in text  # lines that are not commands cost no step
    assert "search[query]" in text
    assert f"Doc 1(Title: {start})" in text
    won, text = run_episode(search_env, "answer[nobody]")
    assert not won
    assert f"No: the answer is {golden}." in text
    won, text = run_episode(search_env, *["search[x]"] * 5)
    assert "No answer was given" in text


def test_index_command_prints_the_folder_used_by_training(test_data, tmp_path, capsys):
    corpus = test_data / "qa" / "search_r1_example_corpus.jsonl"
    assert main.run(["retriever", "index", "--corpus", str(corpus)]) == 0
    from paw_fast.envs.search_qa.retrieval import index_of, open_index

    folder = index_of(corpus)
    assert capsys.readouterr().out.strip() == str(folder)
    assert main.run(["retriever", "index", "--corpus", str(corpus), "--out", str(tmp_path / "mine")]) == 0
    index = open_index(tmp_path / "mine")
    assert index.search(["blue hand Takeshi"], 1)[0][0].passage.title == "Ao Oni (film)"
    index.close()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["retriever", "serv"], "did you mean 'serve'"),
        (["retriever", "index", "--corpus", "/nowhere.jsonl"], "no corpus at /nowhere.jsonl"),
        (["retriever", "serve", "--corpus", "/nowhere"], "no corpus at /nowhere"),
        (["retriever", "serve", "--corpse", "x"], "did you mean --corpus?"),
        (["retriever", "index", "--corpus", __file__], "expected .jsonl or .json"),
        (["retriever", "index", "--corpus", __file__, "--kind", "dense"], "--kind dense needs --encoder"),
        (["play", "--env", "search", "--env.corpus", "x.jsonl"], "passages but no questions"),
        (["train", "--env", "search", "--env.topk", "0"], "--env.topk is 0"),
        (["train", "--env", "search", "--env.format-reward", "1"], "--env.format-reward is 1.0"),
        (["train", "--env", "search", "--env.engine", "textworld"], "is a setting of alfworld"),
        (["train", "--env", "alfworld", "--env.topk", "5"], "is a setting of search"),
    ],
)
def test_invalid_arguments_are_one_line_errors(args, message):
    with pytest.raises(UserError) as error:
        main.run(args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_serve_until_ctrl_c_and_port_in_use_error(test_data):
    need("fastapi", "uvicorn")
    corpus = test_data / "qa" / "hotpotqa_train_corpus.json"
    command = [sys.executable, "-m", "paw_fast.cli.main", "retriever", "serve", "--corpus", str(corpus), "--port"]
    server = subprocess.Popen([*command, "0"], stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert server.stderr is not None
    try:
        address = next(found for line in server.stderr if (found := re.search(r"994 passages at (http://\S+);", line)))
        body = json.dumps({"queries": ["Lilu mythology"], "topk": 1, "return_scores": True}).encode()
        with urllib.request.urlopen(urllib.request.Request(address[1], body), timeout=30) as answer:
            ((hit,),) = json.loads(answer.read())["result"]
        assert hit["document"]["contents"].startswith('"Lilu (mythology)"')
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(address[1], b"{"), timeout=30)
        assert refused.value.code == 400
        refused.value.close()
        with pytest.raises(UserError, match="cannot listen on 127"):
            main.run(["retriever", "serve", "--corpus", str(corpus), "--port", address[1].split(":")[2].split("/")[0]])
    finally:
        server.send_signal(signal.SIGINT)
        _, rest = server.communicate(timeout=30)
    assert "Traceback" not in rest


def test_train_two_steps_on_hotpotqa(test_data, tmp_path, capsys):
    """Index, train two steps on the published sample, evaluate with exact match and F1."""
    qa = test_data / "qa"
    records, run = json.loads((qa / "hotpotqa_train.json").read_text()), tmp_path / "run"
    for name, part in {"train": records[:-2], "held_out": records[-3:]}.items():  # one question in both
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    assert main.run(["retriever", "index", "--corpus", str(qa / "hotpotqa_train_corpus.json")]) == 0
    capsys.readouterr()
    settings = {
        "preset": "tiny", "steps": 2, "env.topk": 2,
        "env.train": tmp_path / "train.json", "env.eval": tmp_path / "held_out.json",
        "env.corpus": qa / "hotpotqa_train_corpus.json", "env.max-observation-tokens": 60,
        "warm-start.episodes": 6, "warm-start.epochs": 1, "env.expert.early-answer-prob": 0, "rollout.groups": 2,
        "rollout.group-size": 2, "rollout.slots": 4, "algo.minibatches": 1, "eval-tasks": 3, "run-dir": run,
    }  # fmt: skip
    args = [str(part) for name, value in settings.items() for part in ("--" + name, value)]
    assert main.run(["train", "--env", "search", *args]) == 0
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert {"score/eval_em", "score/eval_f1", "score/eval_sub_em"} <= set(rows[-1])
    assert {"score/em", "score/f1", "retrieval/queries", "wm/next_observation_error"} <= set(rows[1])
    assert (run / "passages.jsonl").read_text().startswith('{"step": 0')  # those of the demonstrations
    stderr = capsys.readouterr().err
    assert "warning: 1 of the 3 evaluation tasks of the split 'unseen' are training tasks too" in stderr
    assert "on 3 unseen tasks (1 of them training tasks)" in stderr
    assert json.loads((run / "summary.json").read_text())["eval_tasks_in_train"] == 1
    assert "1 of the evaluation tasks are also training tasks" in (run / "report.html").read_text()
    assert main.run(["eval", str(run), "--tasks", "3"]) == 0
    assert "3 unseen tasks (1 of them training tasks)" in " ".join(capsys.readouterr().out.split())
    assert main.run(["eval", str(run), "--tasks", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["eval_tasks_in_train"] == 1
    assert set(result["mean_scores"]) == {"em", "sub_em", "f1"}
    assert result["success"] == result["mean_scores"]["em"] == rows[-1]["score/eval_em"]
    assert set(result["by_task_type"]) == {"held_out"}
