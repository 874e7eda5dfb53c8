"""Compares the native engine with the reference engine. Needs the extra `alfworld`."""

import json
import os
import random
import re
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paw_fast import envs
from paw_fast.envs.alfworld import Planner, engine
from paw_fast.envs.alfworld.games import list_tasks, load_world, read_task, reference_texts
from paw_fast.envs.alfworld.textworld import caching
from paw_fast.envs.alfworld.textworld.env import ReferenceEnv, Worker
from paw_fast.errors import UserError

pytestmark = pytest.mark.skipif(reference_texts() is None, reason="needs the extra alfworld (the reference engine)")


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    from differential import games_for

    return games_for(None, tmp_path_factory.mktemp("differential"), num_generated=9, num_mutated=27)


@pytest.fixture
def reference(small_env):
    env = envs.make("alfworld", engine="textworld", data=small_env.tasks("train")[0].path.parents[3])
    yield env
    env.close()


@pytest.fixture
def env_with_fallback(small_env):
    """The native engine, with a fallback to the reference engine."""
    data = small_env.tasks("train")[0].path.parents[3]
    env = envs.make("alfworld", data=data, allow_reference_engine=True)
    yield env
    env.close()


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 35), choices=st.lists(st.integers(0, 1 << 20), min_size=25, max_size=25))
def test_engines_agree_on_mutated_games(worker, games, which, choices):
    from differential import Tally, play_both

    play_both(worker, games[which], choices, Tally())


def test_nonstandard_games_agree_or_are_unsupported(worker, tmp_path):
    from differential import Tally, games_for, play_both

    tally = Tally()
    for path in games_for(None, tmp_path, num_generated=1, num_mutated=4, num_nonstandard=48)[-48:]:
        play_both(worker, path, range(6), tally)
    assert tally.episodes >= 12
    assert tally.handed_over >= 8


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_engines_agree_over_thirty_thousand_steps(test_data, official_games, capsys):
    from differential import main

    data = ["--data", str(test_data / "alfworld")]
    assert main([*data, "--generated", "60", "--mutated", "144", "--steps", "33000"]) == 0
    out = capsys.readouterr().out
    with capsys.disabled():
        print(out)
    tally = json.loads(out)
    assert tally["steps"] >= 30_000
    assert tally["refused"] < tally["episodes"] / 20


def test_engines_agree_on_official_games(worker, official_games):
    from differential import Tally, play_both

    tally = Tally()
    for path in official_games[::4]:
        play_both(worker, path, range(40), tally)
    assert tally.steps == 120


def test_differences_are_found_and_reproducible(worker, games, monkeypatch):
    from differential import Difference, Tally, explore, play_both

    monkeypatch.setitem(engine._QUIET, "inventory", lambda state, action: "You carry the world.")
    name = re.escape(games[0].name)
    with pytest.raises(Difference, match=rf"{name}, step \d+: text differ.*\n.*You carry the world") as found:
        explore(worker, games[0], 0, 5, 25, Tally())
    choices = found.value.choices
    with pytest.raises(Difference, match=rf"step {len(choices)}: text differ"):
        play_both(worker, games[0], choices, Tally())
    monkeypatch.undo()
    play_both(worker, games[0], choices, Tally())


def test_caches_do_not_change_the_output(games):
    def transcript(worker):
        answers = []
        for path in games[:2]:
            answers.append(worker.receive(worker.send({"op": "reset", "slot": 0, "path": str(path)})))
            for i in range(6):
                command = answers[-1]["admissible"][i * 7 % len(answers[-1]["admissible"])]
                answers.append(worker.receive(worker.send({"op": "step", "slot": 0, "command": command})))
        worker.stop()
        return answers

    assert transcript(Worker()) == transcript(Worker(slow=True))


def test_interleaved_games_do_not_mix_in_the_caches(worker, games):
    paths, rng, states = games[::7], random.Random(0), []
    for slot, path in enumerate(paths):
        answer = worker.receive(worker.send({"op": "reset", "slot": slot, "path": str(path)}))
        states.append(None if "error" in answer else load_world(path).initial.clone())
    for _ in range(60):
        slot = rng.randrange(len(paths))
        if (state := states[slot]) is None:
            continue
        command = rng.choice(list(engine.commands(state)))
        answer = worker.receive(worker.send({"op": "step", "slot": slot, "command": command}))
        assert engine.play(state, command) == answer["text"], (paths[slot], command)
        assert list(engine.commands(state)) == answer["admissible"]


def test_caches_are_installed_completely_or_not_at_all(monkeypatch):
    from textworld.envs.pddl import textgen
    from textworld.logic import Rule

    before = (textgen.deepcopy, Rule.__dict__["parse_conjunctive_query"])
    with monkeypatch.context() as patch:
        patch.setitem(caching.CHECKED_WITH, "textworld", "9.9")
        assert caching.install_caches() == "textworld is 1.7.0, but the caches were checked with 9.9 only"
    with monkeypatch.context() as patch:
        patch.setitem(caching.CHECKED_WITH, "no-such-package", "1")
        assert caching.install_caches() == "no-such-package is not installed"
    with monkeypatch.context() as patch:
        patch.delattr(textgen, "deepcopy")
        assert "a name to be replaced is missing in textworld" in caching.install_caches()
    assert before == (textgen.deepcopy, Rule.__dict__["parse_conjunctive_query"])


def test_worker_without_caches_logs_the_reason(small_env, caplog, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nold = m.version\n"
        "m.version = lambda name: '1.8.0' if name == 'textworld' else old(name)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    env = ReferenceEnv(small_env._games, num_workers=1)
    assert env.reset(small_env.tasks("train")[0]) == small_env.reset(small_env.tasks("train")[0])
    assert [record.getMessage() for record in caplog.records] == [
        "the reference engine runs without its caches: textworld is 1.8.0, but the caches were checked with 1.7.0 only"
    ]
    env.close()


def test_full_pipes_do_not_deadlock(small_env):
    worker = Worker(time_limit_s=60)
    worker.receive(worker.send({"op": "reset", "slot": 0, "path": str(small_env.tasks("train")[0].path)}))
    request = {"op": "step", "slot": 0, "command": "\U0001f600" * 1_000}
    tickets = [worker.send(request) for _ in range(200)]  # 2.4 MB of requests, 0.1 MB of answers
    assert {worker.receive(ticket)["text"] for ticket in tickets} == {"Nothing happens."}
    worker.stop()


def test_orphaned_worker_ends_itself(small_env):
    command = [sys.executable, "-m", "paw_fast.envs.alfworld.textworld.worker", "--time-limit", "0.01"]
    reset = json.dumps({"op": "reset", "slot": 0, "path": str(small_env.tasks("train")[0].path)})
    done = subprocess.run(command, input=reset + "\n", capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stdout.count("\n") == 1  # only the line that says it is ready
    assert "Timeout" in done.stderr


def test_same_games_are_listed_as_by_the_reference(tmp_path, small_env, official_games):
    roots = {path.parents[3] for path in official_games} | {small_env.tasks("train")[0].path.parents[3]}
    script = (
        "import json, sys; from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv\n"
        "data = dict(data_path=sys.argv[1], num_train_games=-1)\n"
        "config = {'env': {'goal_desc_human_anns_prob': 0, 'task_types': [1, 2, 3, 4, 5, 6]}, 'dataset': data}\n"
        "print(json.dumps(AlfredTWEnv(config).game_files))\n"
    )
    for root in roots:
        folder = root / "json_2.1.1" / "train" if (root / "json_2.1.1").is_dir() else root / "train"
        environment = {**os.environ, "ALFWORLD_DATA": str(tmp_path)}
        command = [sys.executable, "-c", script, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
        listed = json.loads(done.stdout.splitlines()[-1])
        assert sorted(str(task.path) for task in list_tasks(folder.parent, "train")) == sorted(listed)
        assert listed


def test_both_environments_agree(reference, small_env):
    native = small_env.spawn()
    for task in small_env.tasks("train")[:2]:
        assert reference.reset(task) == native.reset(task)
        for command in ["dance", *Planner().plan(native.state)]:
            assert reference.step(command) == native.step(command)
        with pytest.raises(RuntimeError, match="call reset first"):
            reference.step("look")


def test_batch_survives_the_death_of_a_worker(reference, small_env):
    tasks = small_env.tasks("train")[:3]
    batch, native = envs.make_batch(reference, 3), envs.make_batch(small_env, 3)
    assert batch.reset(tasks) == native.reset(tasks)
    for command in ("look", "inventory", None, "dance"):
        commands = [command, "look", "inventory"]
        os.kill(batch._envs[1]._worker._process.pid, signal.SIGKILL)
        assert batch.step(commands) == native.step(commands)
    batch.close()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_do_not_depend_on_the_number_of_workers(small_env, num_workers):
    env = ReferenceEnv(small_env._games, num_workers=num_workers)
    tasks = small_env.tasks("train")[:4]
    batch, native = envs.make_batch(env, 4), envs.make_batch(small_env, 4)
    env.close()
    assert batch.reset(tasks) == native.reset(tasks)
    for commands in (["look"] * 4, [None, "help", "go to cabinet 1", "inventory"]):
        assert batch.step(commands) == native.step(commands)
    batch.close()


def test_hanging_worker_is_restarted_once(small_env):
    task = small_env.tasks("train")[0]
    env = ReferenceEnv(small_env._games, num_workers=1, time_limit_s=60)
    env.reset(task)
    worker = env._worker
    worker._time_limit_s = 0.5
    os.kill(worker._process.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match=r"did not respond within 0\.5 s.*also after a restart"):
        env.step("look")
    worker._time_limit_s = 60
    assert env.step("look").observation.text
    env.close()
    env.close()


def test_file_that_the_reference_cannot_load(tmp_path, small_env, reference):
    path = tmp_path / "x-y" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    data = json.loads(small_env.tasks("train")[0].path.read_text())
    path.write_text(json.dumps({**data, "pddl_problem": data["pddl_problem"][:-200]}))
    with pytest.raises(UserError, match="cannot load it") as error:
        reference.reset(read_task(path))
    assert "\n" not in str(error.value)
    reference.reset(small_env.tasks("train")[0])


def test_unknown_grammar_falls_back_to_the_reference(tmp_path, small_env, env_with_fallback, caplog):
    path = tmp_path / "pick_and_place_simple-x" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    domain, grammar = reference_texts()
    data = json.loads(small_env.tasks("train")[0].path.read_text())
    changed = grammar.replace("You arrive at", "You walk up to").replace("UNKNOWN GOAL", data["paw_fast"]["task"])
    path.write_text(json.dumps({**data, "pddl_domain": domain, "grammar": changed}))
    env = env_with_fallback.spawn()
    first = env.reset(read_task(path))
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is run by the reference engine: its text grammar is not one of the two known ones"
    ]
    goto = next(command for command in first.admissible if command.startswith("go to"))
    assert env.step(goto).observation.text.startswith("You walk up to")
    assert env.reset(small_env.tasks("train")[0]).text
    assert env.reset(read_task(path)) == first
    assert len(caplog.records) == 1  # once for each file
    env.close()


def test_receptacle_with_an_object_type_falls_back_to_the_reference(tmp_path, small_env, env_with_fallback, caplog):
    path = tmp_path / "pick_and_place_simple-x" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    task = small_env.tasks("train")[0]
    data = json.loads(task.path.read_text())
    receptacle = load_world(task.path).receptacle_ids[0]
    problem = data["pddl_problem"].replace("(:objects", "(:objects BenchType - otype", 1)
    problem = problem.replace("(:init", f"(:init (receptacleType {receptacle} BenchType)", 1)
    path.write_text(json.dumps({**data, "pddl_problem": problem}))
    env, native = env_with_fallback.spawn(), small_env.spawn()
    assert env.reset(read_task(path)).text == native.reset(task).text
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{path} is run by the reference engine: its fact (receptacletype {receptacle[:20]}")
    assert message.endswith("has arguments of type receptacle otype, expected receptacle rtype")
    for command in Planner().plan(native.state):
        assert env.step(command).observation.text == native.step(command).observation.text
    env.close()


def test_file_that_neither_engine_loads_reports_both_reasons(tmp_path, small_env, env_with_fallback, caplog):
    path = tmp_path / "pick_and_place_simple-x" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    data = json.loads(small_env.tasks("train")[0].path.read_text())
    path.write_text(json.dumps({**data, "pddl_problem": data["pddl_problem"].replace("(atLocation", "(flying")}))
    env = env_with_fallback.spawn()
    with pytest.raises(UserError, match=r"cannot load it: KeyError.* because its fact .flying .* is unknown") as error:
        env.reset(read_task(path))
    assert str(error.value).startswith(f"{path}: ")
    assert not caplog.records
    env.close()


def test_unknown_domain_falls_back_to_the_reference(tmp_path, small_env, env_with_fallback, caplog):
    path = tmp_path / "pick_and_place_simple-x" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    task = small_env.tasks("train")[0]
    data = json.loads(task.path.read_text())
    assert "(:predicates" in data["pddl_domain"]
    domain = data["pddl_domain"].replace("(:predicates", "(:predicates (painted ?o - object)", 1)
    path.write_text(json.dumps({**data, "pddl_domain": domain}))
    env = env_with_fallback.spawn()
    first = env.reset(read_task(path))
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is run by the reference engine: its PDDL domain is not one of the three known ones"
    ]
    assert first.text == small_env.reset(task).text
    for command in ("look", *Planner().plan(small_env.state)):
        step = env.step(command)
        assert step.observation.text == small_env.step(command).observation.text
    assert step.score == 1.0
    env.close()
