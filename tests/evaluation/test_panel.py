"""Panels: the same hash wherever it is made, what counts as another task, files that are no panels, evaluation."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from paw_fast import envs
from paw_fast.cli import main
from paw_fast.config import EnvConfig, load_preset
from paw_fast.envs.base import BaseEnv, EnvSpec
from paw_fast.errors import UserError
from paw_fast.evaluation.panel import (
    Panel,
    PanelTask,
    compare,
    digest,
    find_tasks,
    make_panel,
    panel_settings,
    read_panel,
    shipped_panels,
    task_hash,
    with_panel,
)
from paw_fast.types import Observation, Task

SMALL = ["--env.num-unseen", "6", "--env.num-train", "6"]


@pytest.fixture(autouse=True)
def _generated(monkeypatch, tmp_path):
    find = envs.find
    spec = EnvSpec("numbers", EnvConfig, make=lambda config: Numbers())
    monkeypatch.setattr(envs, "find", lambda name: spec if name == "numbers" else find(name))
    for name in ("ALFWORLD_DATA", "WEBSHOP_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def create(name, *options, **variables):
    """A panel made by the command in a process of its own."""
    command = [sys.executable, "-m", "paw_fast", "panel", "create", name, *options]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return read_panel(f"{name}.json")


def test_two_machines_make_the_same_panel(tmp_path):
    """Another cache, order of sets and number of threads; only the name is another one."""
    made = [
        create(f"p{seed}", "--tasks", "4", *SMALL, XDG_CACHE_HOME=str(tmp_path / f"c{seed}"), PYTHONHASHSEED=str(seed),
               OMP_NUM_THREADS=str(seed + 1))
        for seed in (0, 1)
    ]  # fmt: skip
    assert made[0].hash == made[1].hash
    assert made[0] == dataclasses.replace(made[1], name="p0")
    assert len(made[0].tasks) == 4
    assert made[0].settings["num_unseen"] == 6
    assert not {"template", "data", "engine", "history"} & made[0].settings.keys()
    other = create("p2", "--tasks", "4", *SMALL, "--env.game-seed", "1", XDG_CACHE_HOME=str(tmp_path / "c0"))
    assert other.hash != made[0].hash
    assert not {one.hash for one in other.tasks} & {one.hash for one in made[0].tasks}


def test_the_shipped_panels_are_whole():
    assert set(shipped_panels()) == {"alfworld-tiny", "babyai-tiny", "search-tiny", "webshop-tiny"}
    for name in shipped_panels():
        panel = read_panel(name)
        config = load_preset("tiny", panel.env)
        assert (panel.name, len(panel.tasks)) == (name, config.eval_tasks)
        assert with_panel(config.env, panel) == config.env  # what the preset trains is what the panel evaluates


@pytest.mark.parametrize(
    ("name", "needed"), [("alfworld-tiny", ()), ("babyai-tiny", ("minigrid",)), ("search-tiny", ("bm25s", "Stemmer"))]
)
def test_the_shipped_panels_are_what_is_generated_here(name, needed, tmp_path, capfd, monkeypatch):
    if any(importlib.util.find_spec(one) is None for one in needed):
        pytest.skip(f"needs {', '.join(needed)}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main.run(["panel", "verify", name]) == 0
    assert f"are as listed, hash {read_panel(name).hash}" in capfd.readouterr().out


class Numbers(BaseEnv):
    """Tasks 0 to 4; the first observation says the number and `texts`."""

    name = ""

    def __init__(self, texts=("a",) * 5):
        self.texts = texts

    def tasks(self, split):
        return [Task(str(i), task_type="even" if i % 2 == 0 else "odd", info={"i": i}) for i in range(len(self.texts))]

    def reset(self, task):
        return Observation(self.texts[task.info["i"]], (), "say it")


def listed(env, *numbers):
    tasks = env.tasks("unseen")
    rows = tuple(PanelTask(t.task_id, t.task_type, task_hash(env, t)) for t in (tasks[i] for i in numbers))
    return Panel("mine", "numbers", "unseen", {}, "", rows)


def test_tasks_come_in_the_order_of_the_panel_and_differences_are_named():
    panel = listed(Numbers(), 3, 0, 2)
    tasks, differences = compare(panel, Numbers())
    assert ([t.task_id for t in tasks], differences) == (["3", "0", "2"], [])
    tasks, (one,) = compare(panel, Numbers(("a", "a", "CHANGED", "a", "a")))
    assert (one.task.id, one.why.startswith("has the hash ")) == ("2", True)
    _, (one,) = compare(panel, Numbers(("a",) * 3))
    assert (one.task.id, one.why) == ("3", "is not there")


def test_find_tasks_names_the_first_difference():
    config = envs.find("alfworld").make_config()
    panel = dataclasses.replace(listed(Numbers(), 1, 2), env="alfworld", generator="generated small games, version 0")
    message = (
        "2 of the 2 tasks of the panel mine differ here: 1 is not there; its tasks come from generated small games, "
        r"version 0, those here from generated small games, version \d"
    )
    with pytest.raises(UserError, match=message):
        find_tasks(panel, config, Numbers(()))


def test_what_a_task_contains(tmp_path):
    file, copy = tmp_path / "a", tmp_path / "b"
    file.write_text("game")
    copy.write_text("game")
    env = Numbers()
    of = lambda **more: task_hash(env, Task("1", **more))  # noqa: E731
    assert of(path=file) == of(path=copy) != of(key="game")
    assert of(key="k", path=file) == of(key="k", path=copy)
    assert of(info={"i": 1}) != of(info={"i": 2})
    with pytest.raises(UserError, match="cannot read"):
        of(path=tmp_path / "none")


def test_a_game_is_the_same_with_and_without_the_extra(tmp_path):
    data = {"pddl_domain": "", "grammar": "", "pddl_problem": "p", "paw_fast": {"version": 1, "task": "t"}}
    official = {"pddl_domain": "d", "grammar": "g", "pddl_problem": "p"}
    paths = []
    changes = ({}, {"pddl_domain": "d", "grammar": "g", "solvable": True}, {"pddl_problem": "q"})
    for number, change in enumerate(changes):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_text(json.dumps(data | change))
    for number, change in enumerate(({}, {"grammar": "h"}, {"walkthrough": ["look"]})):
        paths.append(tmp_path / f"official{number}")
        paths[-1].write_text(json.dumps(official | change))
    content = envs.find("alfworld").task_content
    hashes = [task_hash(Numbers(), Task("1", path=path), content) for path in paths]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[3] == hashes[5] != hashes[4]
    assert hashes[3] != hashes[0]


def test_a_question_is_its_text_and_answers():
    content = envs.find("search").task_content
    of = lambda **info: task_hash(  # noqa: E731
        Numbers(), Task("1", info={"question": "who?", "golden": ("a",), "supporting": (), **info}), content
    )
    assert of() == of()
    assert len({of(), of(golden=("a", "b")), of(question="where?"), of(supporting=("x",))}) == 4


def test_the_hash_by_hand():
    panel = Panel("x", "e", "s", {"b": 1, "a": None}, "g", (PanelTask("1", "t", "h"),))
    assert panel.hash == digest('[1,"e","s",{"a":null,"b":1},[["1","t","h"]]]')
    changes = [{"env": "f"}, {"split": "u"}, {"settings": {}}, {"tasks": ()}]
    assert len({panel.hash, *(dataclasses.replace(panel, **one).hash for one in changes)}) == 5
    assert dataclasses.replace(panel, generator="other", name="y").hash == panel.hash


def test_settings_are_those_of_the_tasks():
    search = panel_settings(load_preset("search-tiny").env)
    assert (search["max_steps"], search["num_unseen"], search["topk"]) == (5, 400, 1)
    others = {"train", "eval", "corpus", "retriever", "expert", "template", "history", "max_observation_tokens"}
    assert not others & search.keys()
    assert panel_settings(load_preset("babyai-tiny").env)["levels"] == ["GoToLocal"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a panel: no JSON"), ("[]", "is not a panel"), ("{}", "is not a panel"),
        ('{"format": 9}', "has the format 9"), (b"\xff", "is not a panel: no JSON"),
    ],
)  # fmt: skip
def test_files_that_are_no_panels(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_panel(path)


def test_an_edited_panel_is_refused(tmp_path):
    panel = listed(Numbers(), 0, 1)
    path = tmp_path / "p.json"
    path.write_text(panel.to_json())
    assert read_panel(path) == panel
    path.write_text(panel.to_json().replace('"type": "odd"', '"type": "even"'))
    with pytest.raises(UserError, match="was edited: its tasks have the hash"):
        read_panel(path)
    with pytest.raises(UserError, match=r"cannot read the panel nothing\.json: No such file.*alfworld-tiny"):
        read_panel("nothing.json")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["panel", "verfy"], "did you mean 'verify'"),
        (["panel", "create"], "needs NAME"),
        (["panel", "create", "a/b", *SMALL], "expected letters, digits"),
        (["panel", "verify", "alfworld-tiny", "--env.num-unseen", "3"], "--env.num-unseen: it belongs to the panel"),
        (["panel", "list", "all"], "takes no options"),
    ],
)
def test_mistakes_on_the_command_line(args, message):
    with pytest.raises(UserError, match=message):
        main.run(args)


def test_ids_that_occur_twice_are_refused_and_repeated_questions_are_not(tmp_path):
    config = EnvConfig(name="numbers")
    env = Numbers(("a", "b"))
    first, second = env.tasks("unseen")
    same = dataclasses.replace(first, info={"i": 0})
    assert len(make_panel("p", config, env, "unseen", [first, same]).tasks) == 2
    clash = dataclasses.replace(second, task_id=first.task_id, task_type=first.task_type)
    with pytest.raises(UserError, match="two tasks of the split unseen have the id '0'"):
        make_panel("p", config, env, "unseen", [first, clash])


def test_a_panel_that_exists_is_not_overwritten(tmp_path):
    (tmp_path / "mine.json").write_text("precious")
    with pytest.raises(UserError, match=r"mine\.json is there already"):
        main.run(["panel", "create", "mine", *SMALL])
    assert (tmp_path / "mine.json").read_text() == "precious"
