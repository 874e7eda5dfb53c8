"""Environments served with OpenEnv's protocol, played by OpenEnv's own client; limits, and clients that misbehave."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from text_episodes import ENVS, NUM_EPISODES, SETTINGS, play, transcript

from paw_fast import envs
from paw_fast.envs.base import BaseEnv, StepResult
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

pytest.importorskip("openenv", reason="needs the extra openenv")
# OpenEnv's packages deprecate each other's arguments.
pytestmark = pytest.mark.filterwarnings("default")

import uvicorn  # noqa: E402
from openenv import GenericEnvClient  # noqa: E402
from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from paw_fast.envs.search_qa.retrieval.server import open_socket  # noqa: E402
from paw_fast.integrations import openenv as integration  # noqa: E402


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)


@contextlib.contextmanager
def serving(env, **limits):
    """Serves an environment in a thread. Yields (port, the lines that the server said)."""
    limits, said = integration.Limits(**limits), []
    app = integration.make_app(env, "train", limits, said.append)
    listener, servers = open_socket("127.0.0.1", 0), []
    original = uvicorn.Server.__init__

    def remember(self, config):
        original(self, config)
        servers.append(self)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(uvicorn.Server, "__init__", remember)
        thread = threading.Thread(target=integration.serve, args=(app, listener, limits, said.append), daemon=True)
        thread.start()
        while not servers or not servers[0].started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1], said
        finally:
            servers[0].should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def client_of(port):
    return GenericEnvClient(base_url=f"http://127.0.0.1:{port}").sync()


def replay(client, number, turns):
    """The same episode through OpenEnv's client, as `transcript` tells it, and the last observation."""
    result, rows = client.reset(index=number), []
    for command in [*(command for command, _ in turns), None]:
        seen = result.observation
        rows.append((seen["text"], seen["admissible_commands"], result.reward or 0.0, seen["won"],
                     result.done and not seen["truncated"], seen["truncated"]))  # fmt: skip
        if command is not None:
            result = client.step({"command": command})
    return rows, result.observation


def compare(client, name):
    own, won = envs.make(name, **SETTINGS[name]), 0
    for number in range(NUM_EPISODES):
        task, first, turns = play(own, name, number)
        rows, last = replay(client, number, turns)
        assert rows == [row[1:] for row in transcript(first, turns)]
        assert last["task"] == first.task
        state = client.state()
        assert (state["task_id"], state["index"], state["step_count"]) == (task.task_id, number, len(turns))
        won += last["won"]
    own.close()
    assert 30 < won < NUM_EPISODES


@pytest.mark.parametrize("name", [one for one in ENVS if one.values[0] != "alfworld"])
def test_a_hundred_episodes_have_the_text_of_envs_make(name):
    with serving(envs.make(name, **SETTINGS[name])) as (port, said), client_of(port) as client:
        compare(client, name)
    assert said == []


def test_the_command_serves_alfworld_until_sigterm(tmp_path):
    settings = [f"--env.{key.replace('_', '-')}={value}" for key, value in SETTINGS["alfworld"].items()]
    command = [sys.executable, "-m", "paw_fast", "serve-env", "--env", "alfworld", "--port", "0", *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ})
    try:
        line = process.stderr.readline()
        found = re.fullmatch(
            r"alfworld, 100 tasks of the split train, at http://127\.0\.0\.1:(\d+); Ctrl-C stops\n", line
        )
        assert found, line
        port = int(found[1])
        with client_of(port) as client:
            compare(client, "alfworld")
            other = client_of(port)
            other.reset(index=0)  # its session is open when the server is stopped
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert process.wait(30) == -signal.SIGTERM
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.communicate()


# ------------------------------------------------------------------------------------------------------- sessions


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        monkey.delenv("ALFWORLD_DATA", raising=False)
        env = envs.make("alfworld", **SETTINGS["alfworld"])
        with serving(env, max_sessions=3, max_request_bytes=4096) as (port, said):
            yield port, said
        env.close()


def test_sessions_are_isolated_and_a_seed_draws_the_task(server):
    with client_of(server[0]) as one, client_of(server[0]) as other:
        first = one.reset(seed=5, episode_id="mine")
        again = other.reset(seed=5)
        assert first.observation == again.observation
        assert one.state()["episode_id"] == "mine"
        for _ in range(3):
            moved = one.step({"command": first.observation["admissible_commands"][0]})
        assert other.state()["step_count"] == 0
        assert other.step({"command": "look"}).observation["text"] != moved.observation["text"]
        assert other.reset(split="unseen", index=2).observation["task"]
        assert one.reset(seed=5).observation == first.observation


def test_a_client_beyond_the_limit_is_told_so(server):
    clients = [client_of(server[0]) for _ in range(3)]
    for client in clients:
        client.reset(index=0)
    with pytest.raises(RuntimeError, match=r"capacity|CAPACITY"):
        client_of(server[0]).reset(index=0)
    for client in clients:
        client.close()
    with contextlib.closing(client_of(server[0])) as client:  # a place is free again
        assert client.reset(index=0).observation["text"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"index": 100}, "task 100: the split train has tasks 0 to 99"),
        ({"task_id": "nowhere"}, "no task of this id"),
        ({"index": 0, "task_id": "x"}, "chosen by one of them"),
        ({"split": "nowhere"}, "no split"),
        ({"sead": 1}, "got sead"),
        ({"seed": "x"}, "expected int"),
        ({"seed": -1}, "expected at least 0"),
        ({"index": [1]}, "expected its number"),
    ],
)
def test_wrong_resets_are_told_and_the_session_goes_on(server, data, message):
    with client_of(server[0]) as client:
        with pytest.raises(RuntimeError, match=re.escape(message)):
            client.reset(**data)
        with pytest.raises(RuntimeError, match="send reset first"):
            client.step({"command": "look"})
        assert client.reset(index=1).observation["text"]
        with pytest.raises(RuntimeError, match=r"VALIDATION_ERROR|Invalid message"):
            client.step({"comand": "look"})
        half = client.step({"command": "half \ud83d"}).observation  # text that UTF-8 cannot hold
        assert half["admissible"] is False


# ------------------------------------------------------------------------------------------------------- bad clients


def ask(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


def test_tasks_and_health_over_http(server):
    port = server[0]
    assert ask(port, "GET", "/health") == (200, {"status": "healthy"})
    assert ask(port, "GET", "/list_environments") == (200, ["alfworld"])
    assert [one["name"] for one in ask(port, "GET", "/alfworld/splits")[1]] == ["train", "unseen"]
    assert ask(port, "POST", "/alfworld/num_tasks", '{"split": "unseen"}') == (200, {"num_tasks": 4})
    task = ask(port, "POST", "/alfworld/task", '{"split": "train", "index": 2}')[1]["task"]
    assert set(task) == {"id", "index", "split", "type"}
    assert ask(port, "POST", "/alfworld/task_range", '{"split": "train", "start": 2, "stop": 3}')[1]["tasks"] == [task]
    assert len(ask(port, "POST", "/alfworld/tasks", '{"split": "train"}')[1]["tasks"]) == 100
    assert set(ask(port, "GET", "/schema")[1]["action"]["properties"]) == {"command", "metadata"}
    assert ask(port, "GET", "/metadata")[1]["name"] == "alfworld"
    assert ask(port, "POST", "/reset", '{"index": 2}')[1]["observation"]["text"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/step", '{"action": {"command": "look"}}', {}, 409),
        ("/reset", '{"index": 1000000}', {}, 400),
        ("/reset", '{"index": ', {}, 422),
        ("/reset", "x" * 5000, {}, 413),
        ("/reset", iter([b"x" * 3000, b"y" * 3000]), {}, 400),
        ("/reset", "{}", {"Content-Length": "abc"}, 400),
        ("/reset", "{}", {"Origin": "http://elsewhere.example"}, 403),
        ("/alfworld/task", '{"split": "train", "index": -1}', {}, 400),
        ("/alfworld/num_tasks", '{"split": "nowhere"}', {}, 400),
        ("/webshop/num_tasks", '{"split": "train"}', {}, 404),
    ],
)
def test_bad_requests_get_a_status(server, path, body, headers, status):
    port, said = server
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
    assert connection.getresponse().status == status
    connection.close()
    assert not any("Traceback" in line for line in said)


@pytest.mark.parametrize(
    "frame", ["no json", "[]", "3", '{"type": 3}', '{"type": "nope"}', "[" * 3000, b"\x00\xff",
              '{"type":"step","data":[]}',
              '{"type": "mcp", "data": {"method": "tools/list", "jsonrpc": "2.0", "id": 1}}'],
)  # fmt: skip
def test_bad_frames_get_an_error_and_harm_nobody(server, frame, capfd):
    port, _ = server
    with client_of(port) as client:
        client.reset(index=3)
        with connect(f"ws://127.0.0.1:{port}/ws") as bad:
            bad.send(frame)
            assert "rror" in bad.recv(timeout=20)
        assert client.step({"command": "look"}).observation["text"]
    assert "Traceback" not in capfd.readouterr().err


def test_frames_that_are_too_large_and_foreign_pages_are_refused(server):
    port, _ = server
    with connect(f"ws://127.0.0.1:{port}/ws") as bad:
        bad.send(json.dumps({"type": "step", "data": {"command": "x" * 5000}}))
        with pytest.raises(ConnectionClosed) as closed:
            bad.recv(timeout=20)
        assert closed.value.rcvd.code == 1009
    with pytest.raises(Exception, match="403"):
        connect(f"ws://127.0.0.1:{port}/ws", origin="http://elsewhere.example")
    with connect(f"ws://127.0.0.1:{port}/ws", origin=f"http://127.0.0.1:{port}") as own:
        own.send('{"type": "state"}')
        assert json.loads(own.recv(timeout=20))["type"] == "state"


# ------------------------------------------------------------------------------------------------- slow environments


class Slow(BaseEnv):
    """Hangs at the command `hang`, and fails at `crash`."""

    name = "slow"
    release = threading.Event()

    def tasks(self, split):
        return [Task("a")]

    def reset(self, task):
        return Observation("begun", task="wait")

    def step(self, command):
        if command == "hang":
            self.release.wait(60)
        if command == "crash":
            raise ZeroDivisionError("of the environment")
        return StepResult(Observation(f"did {command}"))

    def spawn(self):
        return Slow()


def test_a_request_that_hangs_ends_its_own_session_alone():
    with serving(Slow(), request_timeout_s=0.3) as (port, _), client_of(port) as one, client_of(port) as other:
        one.reset()
        other.reset()
        with pytest.raises(RuntimeError, match=r"took more than 0\.3 s"):
            one.step({"command": "hang"})
        assert other.step({"command": "walk"}).observation["text"] == "did walk"
        with pytest.raises(RuntimeError, match="this session is closed"):
            one.reset()
        with pytest.raises(RuntimeError, match="of the environment"):
            other.step({"command": "crash"})
        Slow.release.set()


def test_a_session_outlives_the_time_limit_of_http_requests(monkeypatch):
    monkeypatch.setattr("paw_fast.envs.search_qa.retrieval.http_limits.REQUEST_TIMEOUT_S", 0.3)
    with serving(Slow()) as (port, _), client_of(port) as client:
        client.reset()
        time.sleep(1.0)
        assert client.step({"command": "walk"}).observation["text"] == "did walk"


def test_an_idle_session_gives_up_its_place(monkeypatch):
    sleep = __import__("asyncio").sleep
    # OpenEnv looks for idle sessions every 5 s or less often.
    monkeypatch.setattr("openenv.core.env_server.http_server.asyncio.sleep", lambda s: sleep(min(s, 0.2)))
    with serving(Slow(), max_sessions=1, idle_timeout_s=0.4, request_timeout_s=0.2) as (port, _):
        one = client_of(port)
        one.reset()
        time.sleep(1.5)
        with client_of(port) as other:
            assert other.reset().observation["text"] == "begun"
            with pytest.raises(RuntimeError, match=r"this session is closed \(it had no request for 0\.4 s\)"):
                one.step({"command": "walk"})
        one.close()


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="make the idle timeout longer"):
        integration.make_app(Slow(), limits=integration.Limits(idle_timeout_s=5, request_timeout_s=5))
