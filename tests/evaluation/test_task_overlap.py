"""Evaluation tasks that are training tasks too: found by what they ask, said with numbers, refused where all are."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from paw_fast import envs
from paw_fast.config import load_preset
from paw_fast.envs.base import BaseEnv
from paw_fast.errors import UserError
from paw_fast.evaluation.success import check_held_out, describe_tasks
from paw_fast.evaluation.task_overlap import count_shared, tasks_in_train
from paw_fast.runs import console
from paw_fast.runs.training_progress import RunShape, StepProgress
from paw_fast.types import Task


class Fixed(BaseEnv):
    """An environment of which only the training tasks are asked for."""

    def __init__(self, *train):
        self.train = train

    def tasks(self, split):
        assert split == "train"
        return self.train


def asked(*texts):
    return [Task(f"id{number}", key=text) for number, text in enumerate(texts)]


@pytest.fixture
def said(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=out, width=300))
    return out


@given(st.lists(st.sampled_from("abcde")), st.lists(st.sampled_from("abcde")))
def test_tasks_with_a_key_are_counted_by_it(train, tasks):
    assert count_shared(asked(*train), asked(*tasks)) == sum(one in train for one in tasks)


@given(st.lists(st.binary(max_size=2), max_size=6), st.lists(st.binary(max_size=2), max_size=6))
def test_files_are_the_same_where_their_bytes_are(tmp_path_factory, train, tasks):
    folder = tmp_path_factory.mktemp("files")

    def write(kind, contents):
        for number, content in enumerate(contents):
            (folder / f"{kind}{number}").write_bytes(content)
        return [Task("the same id", path=folder / f"{kind}{n}") for n in range(len(contents))]

    assert count_shared(write("train", train), write("eval", tasks)) == sum(one in train for one in tasks)


def test_a_file_that_is_gone_is_not_a_training_task(tmp_path):
    (tmp_path / "a").write_text("x")
    here, gone = Task("1", path=tmp_path / "a"), Task("2", path=tmp_path / "b")
    assert count_shared([here, gone], [here, gone]) == 1


def test_some_are_said_and_all_are_refused(said):
    train: Any = Fixed(*asked("a", "b", "c"))
    assert check_held_out(train, asked("x", "y"), "unseen") == 0
    assert said.getvalue() == ""
    assert check_held_out(train, asked("a", "c", "x"), "eval") == 2
    assert "2 of the 3 evaluation tasks of the split 'eval' are training tasks too" in said.getvalue()
    with pytest.raises(UserError, match=r"all 2 evaluation tasks of the split 'eval' .*--eval-split train") as error:
        check_held_out(train, asked("a", "b"), "eval")
    assert "\n" not in str(error.value)
    assert check_held_out(train, asked("a", "b"), "train") == 2


def test_the_word_on_the_screen_is_the_split_s_name(said):
    assert describe_tasks(100, "unseen", 0) == "100 unseen tasks"
    assert describe_tasks(100, "valid_seen", 3) == "100 valid_seen tasks (3 of them training tasks)"
    assert describe_tasks(100, "train", 100) == "100 train tasks"
    row = {"success/rate": 0.5, "success/eval_rate": 0.25, "reward/mean": 1.0, "time/step_s": 1.0}
    StepProgress(RunShape(2, 1, "eval")).step(1, row)
    assert "on eval tasks 25%" in said.getvalue()
    assert "unseen" not in said.getvalue()


def test_the_same_question_in_other_words_of_no_weight(tmp_path):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")

    def write(name, *questions):
        rows = [{"id": f"{name}{n}", "question": q, "answer": "x"} for n, q in enumerate(questions)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    (tmp_path / "c.jsonl").write_text('{"contents": "words about somebody"}\n')
    train, other = (
        write("train.jsonl", "Who wrote Emma?", "谁?"),
        write("eval.jsonl", "who wrote  the emma", "谁?", "When?"),
    )
    env = envs.make("search", train=[train], eval=[other], corpus=tmp_path / "c.jsonl", cache_dir=tmp_path)
    assert tasks_in_train(env, env.tasks("unseen"), "unseen") == 2
    env = envs.make("search", train=[train], eval=[train], corpus=tmp_path / "c.jsonl", cache_dir=tmp_path)
    with pytest.raises(UserError, match="all 2 evaluation tasks"):
        check_held_out(env, env.tasks("eval"), "eval")


def test_a_game_file_that_was_copied_into_another_split(tmp_path):
    game = '{"pddl_domain": "", "grammar": "", "pddl_problem": "%d", "solvable": true}'
    for split, numbers in {"train": (1, 2, 3), "valid_unseen": (3, 4)}.items():
        for number in numbers:
            folder = tmp_path / split / f"pick_and_place_simple-Mug-None-Desk-{number}" / f"trial_{split}"
            folder.mkdir(parents=True)
            (folder / "game.tw-pddl").write_text(game % number)
    env = envs.make("alfworld", data=tmp_path)
    assert tasks_in_train(env, env.tasks("unseen"), "unseen") == 1


def test_generated_games_are_not_made_only_to_be_compared(tmp_path):
    env = envs.make("alfworld", num_train=6, num_unseen=6, cache_dir=tmp_path)
    assert tasks_in_train(env, env.tasks("unseen"), "unseen") == 0
    assert [path.name for path in tmp_path.glob("alfworld/*/json_2.1.1/*")] == ["valid_unseen"]
    assert tasks_in_train(env, env.tasks("train"), "train") == 6
    assert count_shared(env.tasks("train"), [*env.tasks("unseen"), *env.tasks("valid_seen")]) == 0


def test_a_training_run_that_would_be_evaluated_on_its_training_tasks_does_not_start(tmp_path):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    from dataclasses import replace

    from paw_fast.trainer import Trainer

    (tmp_path / "q.jsonl").write_text('{"question": "who?", "answer": "x"}\n{"question": "when?", "answer": "y"}\n')
    (tmp_path / "c.jsonl").write_text('{"contents": "words about somebody"}\n')
    config = load_preset("tiny", "search")
    files = {"train": (str(tmp_path / "q.jsonl"),), "eval": (str(tmp_path / "q.jsonl"),)}
    config = replace(config, env=replace(config.env, **files, corpus=tmp_path / "c.jsonl"))
    with pytest.raises(UserError, match="all 2 evaluation tasks of the split 'unseen' are training tasks too"):
        Trainer(config, tmp_path / "run", False)
