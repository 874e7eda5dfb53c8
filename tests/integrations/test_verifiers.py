"""The environments in verifiers: its own rollouts of 100 episodes, with a model server that plays scripted replies."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from text_episodes import ENVS, NUM_EPISODES, SETTINGS, play

from paw_fast import envs
from paw_fast.errors import UserError
from paw_fast.rollout.prompts import PromptTemplate, policy_view, write_action

pytest.importorskip("verifiers", reason="needs the extra verifiers")
pytestmark = pytest.mark.filterwarnings("default")  # verifiers' packages deprecate each other's arguments

import verifiers.v1 as vf  # noqa: E402

from paw_fast.integrations.verifiers import load_environment  # noqa: E402


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)


class ScriptedModel:
    """An OpenAI-compatible server. `script`: its next replies, in order; `requests`: the messages that it was sent."""

    def __init__(self):
        self.script, self.requests = [], []
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.requests.append(body["messages"])
                message = {"role": "assistant", "content": model.script.pop(0)}
                answer = json.dumps({
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                }).encode()  # fmt: skip
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self.context = vf.ModelContext(model="scripted", client=vf.EvalClientConfig(base_url=url, api_key_var="NONE"))

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def model():
    one = ScriptedModel()
    yield one
    one.stop()


def prompts_of(name, settings, first, turns):
    """What a policy is shown in an episode: the user's turns of the `trajectory` layout."""
    config = envs.configure(name, settings)[0]
    template = PromptTemplate.load(config.template, name)
    shown = [template.first(policy_view(first, config.max_observation_chars)[0])]
    for _, result in turns[:-1]:
        seen = policy_view(result.observation, config.max_observation_chars)[0]
        head, tail = template.split_next(seen)
        shown.append(head + seen.text + tail)
    return shown, template.style


@pytest.mark.parametrize("template", ["verl", "compact"])
@pytest.mark.parametrize("name", ENVS)
def test_a_hundred_episodes_have_the_prompts_of_envs_make(name, template, model):
    count = NUM_EPISODES if template == "verl" else 10
    settings = {**SETTINGS[name], "template": template}
    env, own = load_environment(name, **settings), envs.make(name, **settings)

    async def run():
        won = 0
        async with env.serving():
            for number, task in enumerate(env.taskset.take(count)):
                chosen, first, turns = play(own, name, number, garbage=False)
                expected, style = prompts_of(name, settings, first, turns)
                model.script[:] = [write_action(command, style) for command, _ in turns]
                model.requests.clear()
                episode = await env.run_episode(task, model.context)
                assert episode.ok, episode.errors or [trace.errors for trace in episode.traces]
                assert model.script == []
                assert len(model.requests) == len(turns)
                assert [m["content"] for m in model.requests[-1] if m["role"] == "user"] == expected
                (trace,) = episode.traces
                assert trace.task.data.id == chosen.task_id
                assert trace.rewards["reward"].score == sum(result.reward for _, result in turns)
                assert trace.metrics["won"] == turns[-1][1].won
                assert trace.metrics["num_steps"] == len(turns)
                won += turns[-1][1].won
        return won

    assert 0 < asyncio.run(run()) < count
    own.close()


def test_replies_without_a_command_are_counted_and_lose(model):
    env = load_environment("alfworld", **SETTINGS["alfworld"])
    model.script[:] = ["I would rather sleep."] * 12

    async def run():
        async with env.serving():
            return await env.run_episode(next(iter(env.taskset)), model.context)

    (trace,) = asyncio.run(run()).traces
    assert (trace.metrics["invalid_actions"], trace.metrics["num_steps"]) == (1.0, 12)
    assert trace.rewards["reward"].score == 0.0


def test_many_episodes_at_a_time_are_separate(model):
    """Episodes that run at once, with one reply each, reach their own games."""
    settings = {**SETTINGS["alfworld"], "max_steps": 1, "template": "compact"}
    env, own = load_environment("alfworld", **settings), envs.make("alfworld", **settings)
    model.script[:] = ["look"] * 12

    async def run():
        async with env.serving():
            return await asyncio.gather(*(env.run_episode(task, model.context) for task in env.taskset.take(12)))

    for number, episode in enumerate(asyncio.run(run())):
        assert episode.ok
        user = next(node.message for node in episode.traces[0].nodes if node.message.role == "user")
        assert user.content == own.reset(own.tasks("train")[number]).text


def test_the_plugin_is_found_by_its_name_and_mistakes_are_told():
    config = vf.EnvConfig.model_validate({"taskset": {"id": "paw-fast-verifiers", "env": "alfworld"}})
    assert type(config.taskset).__name__ == "TextGameTasksetConfig"
    with pytest.raises(UserError, match="alfworld has no setting 'sise'"):
        load_environment("alfworld", sise="mini")
    with pytest.raises(UserError, match="no such environment"):
        load_environment("alfwrld")
    with pytest.raises(UserError, match="no split 'nowhere'"):
        next(iter(load_environment("alfworld", split="nowhere", **SETTINGS["alfworld"]).taskset))
