"""Tests generated game files, listings of data sets, and error messages for invalid files."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from paw_fast import envs
from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.games import (
    dataset_root,
    distinct_games,
    game_json,
    generated_root,
    list_games,
    list_tasks,
    load_world,
    make_split,
    read_game,
    read_task,
)
from paw_fast.envs.alfworld.pddl import UnsupportedGame, parse_problem
from paw_fast.envs.alfworld.tables import MINI_TASK_TYPES, SIZES, TASK_TYPES, UNSEEN_ROOMS
from paw_fast.errors import UserError
from paw_fast.types import Task

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def game_file(tmp_path):
    game = next(distinct_games(3, "small", "train", 1))
    path = tmp_path / "pick-x" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(game_json(game))
    return path


def rewrite(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def replace_problem(old, new):
    def change(data):
        assert old in data["pddl_problem"]
        data["pddl_problem"] = data["pddl_problem"].replace(old, new, 1)

    return change


@pytest.mark.parametrize("size", SIZES)
def test_games_depend_on_seed_size_split_and_number(size):
    one = list(distinct_games(1, size, "train", 12))
    assert one == list(distinct_games(1, size, "train", 18))[:12]
    assert one != list(distinct_games(2, size, "train", 12))
    types = MINI_TASK_TYPES if size == "mini" else TASK_TYPES
    assert Counter(game.task_type for game in one) == dict.fromkeys(types, 12 // len(types))


def test_mini_games_are_short():
    """Rooms of 3-4 receptacles, with up to three objects and a lamp, and plans of at most six commands."""
    for game in distinct_games(6, "mini", "train", 60):
        facts = Counter(fact[0] for fact in parse_problem(game.problem).facts)
        assert 3 <= facts["receptacletype"] <= 4
        assert 2 <= facts["pickupable"] <= 3
        assert 3 <= len(game.plan) <= 6


@pytest.mark.parametrize("size", SIZES)
def test_walkthroughs_win_with_their_last_command(size, tmp_path):
    for game in distinct_games(5, size, "valid_unseen", 18):
        path = tmp_path / "game.tw-pddl"
        path.write_text(game_json(game))
        state = load_world(path).initial.clone()
        assert not state.won()
        for command in game.plan:
            assert not state.won()
            assert engine.play(state, command) != "Nothing happens."
        assert state.won()


def test_unseen_rooms_are_not_in_training(small_env):
    def rooms(split):
        return {int(task.task_id.split("/")[0].rsplit("-", 1)[1]) % 100 for task in small_env.tasks(split)}

    assert rooms("unseen") <= UNSEEN_ROOMS
    assert not rooms("train") & UNSEEN_ROOMS
    assert not rooms("valid_seen") & UNSEEN_ROOMS


def test_games_are_distinct_across_splits():
    seen = set()
    num = sum(
        1 for split in ("train", "valid_seen", "valid_unseen") for _ in distinct_games(0, "small", split, 60, seen)
    )
    assert len(seen) == num == 180


def test_targets_are_not_in_goal_receptacles_initially():
    for game in distinct_games(9, "medium", "train", 30):
        facts = parse_problem(game.problem).facts
        kinds = {fact[1]: fact[2] for fact in facts if fact[0] in ("receptacletype", "objecttype")}
        inside = {(kinds[fact[1]], kinds[fact[2]]) for fact in facts if fact[0] == "inreceptacle"}
        assert f"{game.target.lower()}type" in {o for o, _ in inside}
        assert (f"{game.target.lower()}type", f"{game.goal.lower()}type") not in inside


def test_first_tasks_are_balanced_over_task_types(small_env):
    assert Counter(task.task_type for task in small_env.tasks("train")[:12]) == dict.fromkeys(TASK_TYPES, 2)
    assert len(small_env.tasks("train")) == 24
    assert list(small_env.tasks("unseen")) == list(small_env.tasks("valid_unseen"))


def test_cache_folder_is_a_data_set(tmp_path, monkeypatch):
    counts = {"train": 6, "valid_seen": 6, "valid_unseen": 6}
    root = generated_root("small", 4, counts, tmp_path)
    for split in counts:
        make_split(root, "small", 4, counts, split)
    monkeypatch.setenv("ALFWORLD_DATA", str(root.parent))
    env = envs.make("alfworld")
    assert len(env.tasks("train")) == 6
    assert env.reset(env.tasks("train")[0]).task
    assert dataset_root(root) == root
    traj = json.loads(next(root.glob("train/look*/*/traj_data.json")).read_text())
    assert traj["task_type"] == "look_at_obj_in_light"
    assert set(traj["pddl_params"]) == {
        "mrecep_target", "object_sliced", "object_target", "parent_target", "toggle_target",
    }  # fmt: skip


def test_concurrent_generation(tmp_path):
    code = (
        "import sys; from paw_fast import envs;"
        f"env = envs.make('alfworld', num_train=12, num_unseen=6, cache_dir={str(tmp_path)!r});"
        "print([t.task_id for t in env.tasks('train')])"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert [path.name for path in tmp_path.glob("alfworld/*/json_2.1.1/*")] == ["train"]


def test_stale_temporary_folders_are_removed(tmp_path):
    counts = {"train": 1, "valid_seen": 1, "valid_unseen": 1}
    root = generated_root("small", 0, counts, tmp_path)
    old, new = root / ".making-old", root / ".making-new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    make_split(root, "small", 0, counts, "valid_unseen")
    assert not old.exists()
    assert new.exists()


def test_unwritable_cache_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write generated games to .*file.*set XDG_CACHE_HOME") as error:
        envs.make("alfworld", cache_dir=tmp_path / "file").tasks("train")
    assert "\n" not in str(error.value)


def test_xdg_cache_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    env = envs.make("alfworld", num_train=1, num_unseen=1)
    assert env.tasks("train")[0].path.is_relative_to(tmp_path / "paw-fast" / "alfworld")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "alfwrld"}, "did you mean alfworld"),
        ({"engine": "nativ"}, "choose native or textworld"),
        ({"size": "tiny"}, "choose mini, small, medium, full"),
        ({"num_train": 0}, "--env.num-train is 0, expected 1 or more"),
        ({"max_steps": 0}, "--env.max-steps is 0, expected 1 or more"),
        ({"sise": "small"}, "no setting 'sise'"),
        ({"data": "/nowhere"}, "no ALFWorld data at /nowhere"),
    ],
)
def test_wrong_settings(arguments, message, tmp_path):
    arguments = {"name": "alfworld", "cache_dir": tmp_path, **arguments}
    with pytest.raises(UserError, match=message):
        envs.make(**arguments).tasks("train")


def test_unknown_split(small_env):
    with pytest.raises(UserError, match=r"no split 'vald'.*valid_unseen"):
        small_env.tasks("vald")


def test_data_folder_without_splits(tmp_path):
    with pytest.raises(UserError, match=r"neither json_2\.1\.1/train"):
        envs.make("alfworld", data=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="there is no folder valid_unseen"):
        envs.make("alfworld", data=tmp_path).tasks("unseen")


def test_loader_skips_the_files_the_reference_skips(tmp_path):
    def add(kind, solvable):
        folder = tmp_path / "train" / kind / "trial_1"
        folder.mkdir(parents=True)
        end = {} if solvable is None else {"solvable": solvable}
        (folder / "game.tw-pddl").write_text(json.dumps({"pddl_problem": "x" * 900, **end}))

    add("pick_and_place_simple-Mug-None-Desk-301", True)
    add("pick_and_place_simple-Cup-None-Desk-301", False)
    add("pick_and_place_simple-Pan-None-Desk-301", None)
    add("pick_and_place_simple-AppleSliced-None-Desk-301", True)
    add("pick_and_place_with_movable_recep-Mug-Bowl-Desk-301", True)
    tasks = list_tasks(tmp_path, "train")
    assert [task.task_id for task in tasks] == ["pick_and_place_simple-Mug-None-Desk-301/trial_1"]


def test_skipped_files_are_logged_with_counts_and_reasons(tmp_path, caplog):
    whole = '{"pddl_domain": "", "grammar": "", "pddl_problem": "", "solvable": true}'
    texts = [
        whole, '\ufeff{"solvable": true, "pddl_problem": "' + "x" * 900 + '"}\n',  # these two are playable
        whole.replace(', "solvable": true', ""), whole[:30], "", " \n", whole.replace("true", "false"),
        '{"solvable": true, "pddl_problem": "cut he', "[1]", whole.replace("true", "null"),
    ]  # fmt: skip
    names = [f"pick_and_place_simple-Mug-None-Desk-{number}" for number in range(len(texts))]
    texts += [whole, whole, whole]
    names += ["new_task-Mug-None-Desk-1", "pick_and_place_simple-AppleSliced-None-Desk-1", "x_movable-Mug-None-Desk-1"]
    for name, text in zip(names, texts, strict=True):
        folder = tmp_path / "valid_unseen" / name / "trial_1"
        folder.mkdir(parents=True)
        (folder / "game.tw-pddl").write_text(text, encoding="utf-8")
    listing = list_games(tmp_path, "unseen")
    assert [task.task_id.split("/")[0] for task in listing.tasks] == names[:2]
    assert listing.left_out == {
        "without the key `solvable`": 2, "not valid JSON (incomplete download?)": 2, "empty": 2, "marked unsolvable": 2,
        "of an unknown task type": 1,
    }  # fmt: skip
    env = envs.make("alfworld", data=tmp_path)
    assert len(env.tasks("unseen")) == len(env.tasks("valid_unseen")) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: valid_unseen: 9 of 11 game files skipped: 2 empty, 2 marked unsolvable, 2 not valid JSON "
        "(incomplete download?), 1 of an unknown task type, 2 without the key `solvable`"
    ]


def test_surrogates_in_a_game_are_replaced(game_file):
    data = json.loads(game_file.read_text())
    data["paw_fast"]["note"] = data["grammar"] = data["pddl_domain"] = "x\ud83d"
    game_file.write_text(json.dumps(data), encoding="utf-8-sig")
    found = read_game(game_file)
    assert found["grammar"] == found["paw_fast"]["note"] == "x\ufffd"


WRONG = [
    (lambda path: path.write_bytes(b""), "not valid JSON at line 1 column 1"),
    (lambda path: path.write_bytes(path.read_bytes()[:500]), "not valid JSON at line 1"),
    (lambda path: path.write_bytes(b"\xff\xfe\x00"), "byte 0 is not UTF-8"),
    (lambda path: path.write_text("[1]"), "contains a JSON list"),
    (lambda path: path.write_text("{}"), "'pddl_domain' is missing"),
    (lambda path: path.write_text("[" * 200_000), "not valid JSON"),
    (lambda path: path.write_text("9" * 5_000), "not valid JSON|contains a JSON"),
    (lambda path: rewrite(path, lambda d: d.update(pddl_problem=7)), "'pddl_problem' is missing or not a string"),
    (lambda path: rewrite(path, lambda d: d.update(pddl_problem="")), "contains no PDDL expression"),
    (lambda path: rewrite(path, lambda d: d.update(pddl_problem=d["pddl_problem"][:-40])), "open parentheses"),
    (lambda path: rewrite(path, lambda d: d.update(pddl_problem="(" * 999)), "line 1: nested deeper than 500"),
    (lambda path: rewrite(path, lambda d: d.update(pddl_problem="(define)")), "lacks the section"),
    (lambda path: rewrite(path, lambda d: d.update(pddl_problem="(define (:init) (:init))")), "has two sections"),
    (lambda path: rewrite(path, replace_problem("(:goal", "(:goal) (:goals")), "must contain one formula"),
    (
        lambda path: rewrite(path, replace_problem("(:init", "(:init\n(\u00fc)")),
        "line [0-9]+: the character.*not ASCII",
    ),
    (lambda path: rewrite(path, replace_problem("(atLocation agent1", "(atLocation agent2")), "names 'agent2'"),
    (lambda path: rewrite(path, replace_problem("(:init", "(:init (inReceptacle)")), "type none, expected object rec"),
    (lambda path: rewrite(path, replace_problem("(:init", "(:init ((a))")), "plain fact"),
    (lambda path: rewrite(path, replace_problem("(:objects", "(:objects agent1 - mouse")), "declares 'agent1'"),
    (lambda path: rewrite(path, replace_problem("(:goal (and", "(:goal (and (isClean agent7)")), "goal names 'agent7'"),
    (lambda path: rewrite(path, replace_problem("(:goal (and", "(:goal (and (isClean)")), "isclean 0 arguments, exp"),
]


@pytest.mark.parametrize(("damage", "message"), WRONG)
def test_invalid_files_are_one_line_errors_with_the_location(game_file, damage, message, small_env):
    damage(game_file)
    with pytest.raises(UserError, match=message) as error:
        small_env.spawn().reset(read_task(game_file))
    assert str(game_file) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(game_file))


def test_missing_and_unreadable_files(tmp_path, small_env):
    with pytest.raises(UserError, match="no game file at"):
        read_task(tmp_path / "game.tw-pddl")
    with pytest.raises(UserError, match="cannot read"):
        small_env.spawn().reset(Task("x", path=tmp_path / "gone"))
    with pytest.raises(UserError, match="has no game file"):
        small_env.spawn().reset(Task("x"))


def other_grammar(data):
    data["pddl_domain"], data["grammar"] = data["pddl_domain"] or "(define)", data["grammar"] + "\n "
    data["grammar"] += '"Your task is to: dance."'


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (other_grammar, "text grammar is not one"),
        (replace_problem("(:goal (and", "(:goal (and (not (exists (?o - object) (holds agent1 ?o)))"), "its goal is"),
        (replace_problem("(:goal (and", "(:goal (and (forall (?o - object) (isClean ?o))"), "its goal is"),
        (replace_problem("(:goal (and", "(:goal (and (holds ?x ?y)"), r"its goal uses the variable '\?x' without"),
        (
            replace_problem("(:goal (and", "(:goal (and (exists (?o - object) (opened ?o))"),
            "its goal has the type 'object'",
        ),
        (replace_problem("(:init", "(:init (checked agent1)"), "its fact .* of type agent, expected receptacle"),
        (replace_problem("(:init", "(:init (openable agent1)"), "its fact .* of type agent, expected receptacle"),
        (replace_problem("(:init", "(:init (flying agent1)"), "its fact .flying agent1. is unknown"),
        (replace_problem("(:init", "(:init (not (opened agent1))"), "not a plain fact"),
        (replace_problem("agent1 - agent", "agent1 i - agent"), None),
        (lambda data: data.update(pddl_problem=data["pddl_problem"].replace("agent1", "{x}")), "its name '{x}' is not"),
    ],
)
def test_unsupported_games_are_distinguished_from_invalid_ones(game_file, change, why):
    rewrite(game_file, change)
    if why is None:
        assert load_world(game_file).objects
        return
    with pytest.raises(UnsupportedGame, match=why):
        load_world(game_file)


def test_unknown_grammar_is_rejected_unless_the_reference_engine_is_allowed(game_file, small_env, monkeypatch):
    """The reference evaluates Python expressions in the file, so it must not be started without permission."""

    def started(*args, **kwargs):
        raise AssertionError("the reference engine was started")

    monkeypatch.setattr("paw_fast.envs.alfworld.textworld.env.ReferenceEnv", started)
    rewrite(game_file, other_grammar)
    with pytest.raises(UserError, match=r"text grammar is not one of .* add --env\.allow-reference-engine") as error:
        small_env.spawn().reset(read_task(game_file))
    assert str(error.value).startswith(f"{game_file}: the native engine cannot run it")
    assert "\n" not in str(error.value)


def test_unknown_grammar_without_the_extra(game_file, small_env, caplog, monkeypatch):
    monkeypatch.setattr("paw_fast.envs.alfworld.textworld.env.reference_texts", lambda: None)
    rewrite(game_file, other_grammar)
    missing = r"not installed: pip install .*\[alfworld\]'"
    env = envs.make("alfworld", data=small_env.tasks("train")[0].path.parents[3], allow_reference_engine=True)
    with pytest.raises(UserError, match=rf"text grammar is not one of.*{missing}") as error:
        env.reset(read_task(game_file))
    assert str(error.value).startswith(f"{game_file}: the native engine cannot run it")
    assert not caplog.records
    with pytest.raises(UserError, match=missing):
        envs.make("alfworld", engine="textworld")


COUNTS = {"train": 80, "valid_seen": 6, "valid_unseen": 6}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def remove_twenty(folder):
    for path in sorted(folder.glob("*/*"))[:20]:
        shutil.rmtree(path)
    return r"is missing \(and 39 more\)"


def change_a_byte(folder):
    path = next(folder.glob("*/*/game.tw-pddl"))
    path.write_text(path.read_text().replace('"solvable": true', '"solvable": tru3'))
    return r"game\.tw-pddl has changed"


def add_a_game(folder):
    game = next(folder.glob("*/*"))
    shutil.copytree(game, game.with_name("trial_G0"))
    return r"trial_G0/game\.tw-pddl was added"


def remove_the_manifest(folder):
    (folder / "manifest.json").unlink()
    return r"manifest\.json is missing"


@pytest.mark.parametrize("damage", [remove_twenty, change_a_byte, add_a_game, remove_the_manifest])
def test_damaged_games_are_made_again_with_one_line(tmp_path, capsys, damage):
    env = envs.make("alfworld", num_train=80, num_unseen=6, cache_dir=tmp_path)
    tasks = env.tasks("train")
    folder = generated_root("small", 0, COUNTS, tmp_path) / "train"
    before = contents(folder)
    message = damage(folder)
    capsys.readouterr()
    again = envs.make("alfworld", num_train=80, num_unseen=6, cache_dir=tmp_path).tasks("train")
    said = capsys.readouterr().err.replace("\n", "")
    assert re.search(rf"the generated games in .* are damaged: .*{message}.*; making them again", said)
    assert again == tasks
    assert contents(folder) == before
    envs.make("alfworld", num_train=80, num_unseen=6, cache_dir=tmp_path).tasks("train")
    assert capsys.readouterr().err == ""
