"""Our engine against the reference, where the extra is installed."""

import json
import os
import signal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paw_fast import envs
from paw_fast.envs.alfworld import OracleExpert, engine
from paw_fast.envs.alfworld.games import reference_texts
from paw_fast.envs.alfworld.reference import ReferenceEnv, Worker
from paw_fast.types import Task, UserError

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


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 35), choices=st.lists(st.integers(0, 1 << 20), min_size=25, max_size=25))
def test_every_text_command_list_and_win_is_equal(worker, games, which, choices):
    from differential import Tally, play_both

    play_both(worker, games[which], choices, Tally())


def test_official_games_are_equal(worker, official_games):
    from differential import Tally, play_both

    tally = Tally()
    for path in official_games[::4]:
        play_both(worker, path, range(40), tally)
    assert tally.steps == 120


def test_a_difference_is_found_and_can_be_played_again(worker, games, monkeypatch):
    from differential import Difference, Tally, explore, play_both

    monkeypatch.setitem(engine._QUIET, "inventory", lambda state, action: "You carry the world.")
    with pytest.raises(Difference, match=r"small-0\.tw-pddl, step \d+: text differ.*\n.*You carry the world") as found:
        explore(worker, games[0], 0, 5, 25, Tally())
    choices = found.value.choices
    with pytest.raises(Difference, match=rf"step {len(choices)}: text differ"):
        play_both(worker, games[0], choices, Tally())
    monkeypatch.undo()
    play_both(worker, games[0], choices, Tally())


def test_the_caches_change_nothing(games):
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


def test_both_engines_behind_the_protocol_agree(reference, small_env):
    native = small_env.spawn()
    for task in small_env.tasks("train")[:2]:
        assert reference.reset(task) == native.reset(task)
        for command in ["dance", *OracleExpert().plan(native.state)]:
            assert reference.step(command) == native.step(command)
        with pytest.raises(RuntimeError, match="call reset first"):
            reference.step("look")


def test_a_batch_survives_a_worker_that_dies(reference, small_env):
    tasks = small_env.tasks("train")[:3]
    batch, native = envs.make_batch(reference, 3), envs.make_batch(small_env, 3)
    assert batch.reset(tasks) == native.reset(tasks)
    for command in ("look", "inventory", None, "dance"):
        commands = [command, "look", "inventory"]
        os.kill(batch._envs[1]._worker._process.pid, signal.SIGKILL)
        assert batch.step(commands) == native.step(commands)
    batch.close()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_answers_do_not_depend_on_the_number_of_workers(small_env, num_workers):
    env = ReferenceEnv(small_env._games, num_workers=num_workers)
    tasks = small_env.tasks("train")[:4]
    batch, native = envs.make_batch(env, 4), envs.make_batch(small_env, 4)
    env.close()
    assert batch.reset(tasks) == native.reset(tasks)
    for commands in (["look"] * 4, [None, "help", "go to cabinet 1", "inventory"]):
        assert batch.step(commands) == native.step(commands)
    batch.close()


def test_a_worker_that_hangs_is_started_again_and_given_up(small_env):
    task = small_env.tasks("train")[0]
    env = ReferenceEnv(small_env._games, num_workers=1, time_limit_s=60)
    env.reset(task)
    worker = env._worker
    worker._time_limit_s = 0.5
    os.kill(worker._process.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match=r"no answer within 0\.5 s.*started again"):
        env.step("look")
    worker._time_limit_s = 60
    assert env.step("look").observation.text
    env.close()
    env.close()


def test_a_file_the_reference_cannot_load(tmp_path, small_env, reference):
    path = tmp_path / "x-y" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    data = json.loads(small_env.tasks("train")[0].path.read_text())
    path.write_text(json.dumps({**data, "pddl_problem": data["pddl_problem"][:-200]}))
    with pytest.raises(UserError, match="cannot load it") as error:
        reference.reset(Task.from_file(path))
    assert "\n" not in str(error.value)
    reference.reset(small_env.tasks("train")[0])


def test_an_unknown_grammar_is_handed_over_with_one_line(tmp_path, small_env, caplog):
    path = tmp_path / "pick_and_place_simple-x" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    domain, grammar = reference_texts()
    data = json.loads(small_env.tasks("train")[0].path.read_text())
    changed = grammar.replace("You arrive at", "You walk up to").replace("UNKNOWN GOAL", data["paw_fast"]["task"])
    path.write_text(json.dumps({**data, "pddl_domain": domain, "grammar": changed}))
    env = small_env.spawn()
    first = env.reset(Task.from_file(path))
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is played by the reference engine: its text grammar is not one of the two known ones"
    ]
    goto = next(command for command in first.admissible if command.startswith("go to"))
    assert env.step(goto).observation.text.startswith("You walk up to")
    assert env.reset(small_env.tasks("train")[0]).text
    env.close()
