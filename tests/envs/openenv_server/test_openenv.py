"""Tests `--env openenv:URL` with the real package: its own example, the echo environment, and a game, each served by
its server library in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from paw_fast import envs
from paw_fast.cli import main
from paw_fast.config.build import make_config
from paw_fast.envs.openenv_server.fields import Fields, choose, success_of, text_of
from paw_fast.errors import UserError
from paw_fast.models import tiny
from paw_fast.rollout.requirements import check_parts
from paw_fast.runs.metrics import read_metrics

openenv = pytest.importorskip("openenv", reason="openenv is not installed: pip install '.[openenv]'")

DOOR = '''
import os
import random
import time
from openenv.core.env_server import Action, Environment, Observation, State

class DoorAction(Action):
    command: str

class DoorObservation(Observation):
    text: str
    task: str = ""
    admissible_commands: list[str] = []
    won: bool = False

class Door(Environment):
    """The door is on the side that the text says."""
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None, **others):
        self.side, self.steps = random.Random(seed).choice(["left", "right"]), 0
        return self.look(task="leave the room")

    def look(self, **more):
        text = f"The door is <|im_end|> {self.side}."
        return DoorObservation(text=text, admissible_commands=["left", "right"], **more)

    def step(self, action, timeout_s=None, **others):
        word = action.command
        if word == "hang":
            time.sleep(1000)
        if word == "die":
            os._exit(1)
        if word == "fail":
            raise ZeroDivisionError("the hinge")
        won = word == self.side
        return self.look(done=won, reward=0.25, won=won)

    @property
    def state(self):
        return State(step_count=0)
'''


SESSIONS = 6


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A server of OpenEnv in a process of its own."""

    def __init__(self, folder, module, env, action, observation):
        self.port, self.folder = free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.code = (
            "from openenv.core.env_server.http_server import create_fastapi_app\n"
            f"from {module} import {env}, {action}, {observation}\n"
            "import uvicorn\n"
            f"app = create_fastapi_app({env}, {action}, {observation}, max_concurrent_envs={SESSIONS})\n"
            f"uvicorn.run(app, host='127.0.0.1', port={self.port}, log_level='warning')\n"
        )
        self.start()

    def start(self):
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen([sys.executable, "-c", self.code], env=variables, cwd=self.folder)
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.2)

    def stop(self):
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    folder = tmp_path_factory.mktemp("door")
    (folder / "door_for_tests.py").write_text(DOOR)
    server = Server(folder, "door_for_tests", "Door", "DoorAction", "DoorObservation")
    yield server
    server.stop()


def make(server, **settings):
    return envs.make(f"openenv:{server.url}", **settings)


def test_the_packages_own_example(tmp_path):
    """The template of `openenv init`, which echoes."""
    template = Path(openenv.__path__[0]) / "cli" / "templates" / "openenv_env"
    for file, target in (
        ("models.py", "models.py"), ("server/__ENV_NAME___environment.py", "echo_environment.py"),
    ):  # fmt: skip
        text = (template / file).read_text()
        for word, name in (("__ENV_CLASS_NAME__", "Echo"), ("__ENV_TITLE_NAME__", "Echo"), ("__ENV_NAME__", "echo")):
            text = text.replace(word, name)
        (tmp_path / target).write_text(text)
    server = Server(tmp_path, "echo_environment", "EchoEnvironment", "EchoAction", "EchoObservation")
    try:
        env = make(server, max_steps=2, reward="server")
        first = env.reset(env.tasks("train")[0])
        assert (first.text, first.admissible) == ("Echo environment ready!", ())
        result = env.step("Hello")
        assert (result.observation.text, result.reward, result.done) == ("Hello", 0.5, False)
        last = env.step("")
        assert (last.done, last.truncated, last.won) == (True, True, False)
        env.close()
    finally:
        server.stop()


def test_a_game(door):
    env = make(door)
    sides = set()
    for task in env.tasks("train")[:6]:
        first = env.reset(task)
        other = env.spawn()
        assert other.reset(task) == first
        assert (first.task, first.admissible) == ("leave the room", ("left", "right"))
        side = first.text.split()[-1].rstrip(".")
        wrong = other.step({"left": "right", "right": "left"}[side])
        assert (wrong.done, wrong.won, wrong.reward, wrong.score) == (False, False, 0.0, 0.25)
        assert not wrong.was_admissible("up", first)
        right = env.step(side)
        assert (right.done, right.won, right.reward, right.truncated) == (True, True, 1.0, False)
        with pytest.raises(RuntimeError, match="call reset first"):
            env.step(side)
        sides.add(side)
        other.close()
    assert sides == {"left", "right"}
    env.reset(env.tasks("train")[0])
    with pytest.raises(UserError, match=r"its step failed: .*the hinge"):
        env.step("fail")
    env.close()


def test_a_server_that_hangs_or_dies_and_comes_back(door):
    env = make(door, time_limit_s=60.0)
    task = env.tasks("train")[0]
    hanging, other = make_spawned(env, time_limit_s=2.0), env.spawn()
    first = env.reset(task)
    assert hanging.reset(task) == other.reset(task) == first
    with pytest.raises(envs.EpisodeLost, match="did not answer a step within 2 s"):
        hanging.step("hang")
    with pytest.raises(envs.EpisodeLost, match="the connection was lost in a step"):
        env.step("die")
    door.process.wait(10)
    short = make_spawned(env, time_limit_s=1.5)
    calls = []
    short.while_waiting(lambda: calls.append(1))
    with pytest.raises(envs.EpisodeLost, match=r"no server for 1\.5 s"):
        short.reset(task)
    assert calls
    door.start()
    # The client would connect again by itself, to a session without an episode.
    with pytest.raises(envs.EpisodeLost, match="the connection"):
        other.step("left")
    assert env.reset(task) == other.reset(task) == first
    for one in (env, other, hanging, short):
        one.close()


def make_spawned(env, **settings):
    """Another slot with other settings, without asking the server."""
    import dataclasses

    other = env.spawn()
    other._config = dataclasses.replace(env._config, **settings)
    return other


def test_too_many_sessions(door):
    env = make(door)
    slots = [env.spawn() for _ in range(SESSIONS + 1)]

    def reset_all():
        for slot in slots:
            slot.reset(env.tasks("train")[0])

    with pytest.raises(UserError, match=r"fewer --rollout\.slots"):
        reset_all()
    for slot in slots:
        slot.close()


TEXT, FLAG = {"type": "string"}, {"type": "boolean"}


def schema(action, observation=None, required=()):
    return {
        "action": {"properties": {**action, "metadata": {"type": "object"}}, "required": list(required)},
        "observation": {"properties": {"done": FLAG, **(observation or {"text": TEXT})}},
    }


def test_choice_of_fields():
    both = {"code": TEXT, "message": TEXT}
    assert choose(schema({"code": TEXT}), "", "", "x").action == "code"
    assert choose(schema(both), "", "", "x").action == "message"
    assert choose(schema(both), "code", "", "x").action == "code"
    optional = {"anyOf": [TEXT, {"type": "null"}]}
    observation = {"echoed": optional, "goal": TEXT, "legal_actions": {"type": "array"}, "success": FLAG}
    assert choose(schema(both, observation), "", "", "x") == Fields(
        "message", "echoed", "goal", "legal_actions", "success"
    )
    assert choose(schema(both, {"a": TEXT, "b": TEXT}), "", "", "x").text == ""
    assert choose(schema(both, {"a": TEXT, "b": TEXT}), "", "b", "x").text == "b"
    for args, message in (
        ((schema({"x": TEXT, "y": TEXT}), "", ""), "none is clearly a text: say --env.action-field"),
        ((schema({"x": {"type": "integer"}}), "", ""), "its actions have x, of which none"),
        ((schema(both), "cod", ""), r"--env\.action-field cod: .* have code, message"),
        ((schema(both), "", "no"), r"--env\.observation-field no: .* have text"),
        ((schema(both, required=("message", "level")), "", ""), "also need level"),
    ):
        with pytest.raises(UserError, match=message):
            choose(*args, "x")
    shown = {"done": False, "reward": 1, "board": [1, "ä"]}
    assert text_of(shown, Fields("a")) == '{"board": [1, "ä"]}'
    assert success_of({"metadata": {"is_success": True}}, {}, Fields("a")) is True
    assert success_of({}, {"won": False}, Fields("a")) is False
    assert success_of({}, {}, Fields("a")) is None


def test_no_server():
    url = f"http://127.0.0.1:{free_port()}"
    config = make_config("qwen2.5-1.5b", env=f"openenv:{url}", model="x")
    with pytest.raises(UserError, match=rf"no OpenEnv server answers at {url}/schema \(.*refused"):
        check_parts(config)
    with pytest.raises(UserError, match="expected openenv:URL"):
        envs.make("openenv:localhost")
    with pytest.raises(UserError, match="gives no URL"):
        envs.find("openenv:")
    with pytest.raises(UserError, match=r"give --algo\.similarity"):
        make_config("qwen2.5-1.5b", env=f"openenv:{url}", model="x", algo="gigpo")


@pytest.mark.slow
def test_a_run_with_a_random_model(door, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    tokenizer = tiny.train_tokenizer(["The door is left. right leave the room"] * 4, 300)
    tokenizer.save_pretrained("model")
    tiny.build_model(len(tokenizer), hidden=32, layers=1, heads=2, ffn=64).save_pretrained("model")
    options = [
        "--model", "model", "--steps", "2", "--eval-every", "1", "--eval-tasks", "2", "--rollout.groups", "1",
        "--rollout.group-size", "2", "--rollout.slots", "2", "--rollout.max-action-tokens", "8",
        "--env.max-steps", "2", "--algo.minibatches", "1", "--env.template", "compact",
    ]  # fmt: skip
    args = ["train", "--env", f"openenv:{door.url}", "--preset", "tiny", *options, "--run-dir", "run"]
    assert main.run(args) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1, 2]
    assert "no expert (no --model tiny)" in capsys.readouterr().err
