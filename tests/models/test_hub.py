"""Models are looked for before anything is loaded: as folders, in the cache, on the hub."""

import http.server
import json
import threading
import time

import huggingface_hub
import pytest

from paw_fast.errors import UserError
from paw_fast.models import hub


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub of three models; it never answers for models named `slow`."""

    answers = {"there": 200, "gated": 403, "private": 401}
    asked = []

    def do_HEAD(self):
        self.asked.append(self.path)
        model = self.path.split("/")[2]
        if model == "slow":
            time.sleep(1.0)
        status = self.answers.get(model, 404)
        self.send_response(status)
        if status == 200:
            for name, value in (("X-Repo-Commit", "0" * 40), ("ETag", '"1"'), ("Content-Length", "2")):
                self.send_header(name, value)
        elif status == 403:
            self.send_header("X-Error-Code", "GatedRepo")
        elif status in (401, 404):
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use(monkeypatch, tmp_path, f"http://127.0.0.1:{server.server_port}")
    Hub.asked.clear()
    yield
    server.shutdown()
    server.server_close()


def use(monkeypatch, tmp_path, address):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "ANSWER_TIME_S", 0.3)
    hub.hub_problem.cache_clear()


def said(name):
    with pytest.raises(UserError) as error:
        hub.check_model(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_the_hub_says_of_a_model(endpoint):
    hub.check_model("org/there")
    assert "has no such model (or a private one: set HF_TOKEN)" in said("org/missing")
    assert "only to accounts that have asked for access" in said("org/gated")
    assert "has no such model" in said("org/private")
    assert "did you mean Qwen/Qwen2.5-3B-Instruct?" in said("qwen/qwen2.5-3b-instuct")
    assert "did not answer within 0.3 s" in said("org/slow") or "cannot be reached" in said("org/slow")


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path, "http://127.0.0.1:9")
    assert "127.0.0.1:9 cannot be reached (ConnectError)" in said("org/model")


def test_a_cached_model_is_used_without_the_hub(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path, "http://127.0.0.1:9")
    repo = tmp_path / "hub" / "models--org--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    hub.check_model("org/model")
    assert hub.use_cache_only("org/model")
    assert not hub.use_cache_only("org/other")


def test_folders(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path, "http://127.0.0.1:9")
    for name, text in (("good", json.dumps({"model_type": "llama"})), ("bad", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "empty").mkdir()
    hub.check_model(str(tmp_path / "good"))
    hub.check_model("tiny")
    assert "config.json cannot be read" in said(str(tmp_path / "bad"))
    assert "the folder has no config.json" in said(str(tmp_path / "empty"))
    assert f"no such folder; give a Hugging Face model folder or a hub name; did you mean {tmp_path}/good?" in said(
        str(tmp_path / "goood")
    )
    assert "no such folder" in said("a/b/c")
