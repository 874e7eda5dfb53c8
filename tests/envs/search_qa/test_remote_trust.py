"""Tests what the client of a retrieval server does not do: leak credentials, follow redirects, read forever."""

import dataclasses
import http.server
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_extras import need

from paw_fast.config import TrainConfig, env_config
from paw_fast.envs.search_qa.retrieval import remote
from paw_fast.errors import UserError
from paw_fast.runs.run_dir import create_run, load_config, unlock
from paw_fast.runs.secrets import mask_credentials

need("httpx")

RESULT = json.dumps({"result": [[{"document": {"id": "1", "contents": '"A"\nb'}, "score": 1.0}]]}).encode()


class Server:
    """An HTTP server whose `reply(handler)` answers each POST; `seen` lists (path, Authorization)."""

    def __init__(self, reply):
        seen = self.seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                seen.append((self.path, self.headers.get("authorization")))
                reply(self)

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(reply):
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for one in servers:
        one.close()


def answer(handler, status=200, body=RESULT, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def search(url, **more):
    client = remote.RemoteRetriever(url, dialect="queries", retries=0, **more)
    try:
        return client.search(["who"], 3)[0][0].passage.text
    finally:
        client.close()


def test_credentials_are_sent_and_not_shown(serve):
    server = serve(lambda handler: answer(handler, 403, b"no"))
    with pytest.raises(UserError, match="rejected a request with status 403") as failed:
        search(f"http://me:s3cret@127.0.0.1:{server.port}")
    assert "s3cret" not in str(failed.value)
    assert f"http://***@127.0.0.1:{server.port}/retrieve" in str(failed.value)
    assert server.seen == [("/retrieve", "Basic bWU6czNjcmV0")]  # me:s3cret


def test_a_run_keeps_no_credentials_and_takes_them_from_the_environment(serve, tmp_path, monkeypatch):
    server = serve(answer)
    env = dataclasses.replace(env_config("search"), retriever=f"http://me:s3cret@127.0.0.1:{server.port}/")
    run_dir = create_run(TrainConfig(env=env, run_dir=tmp_path / "run"))
    unlock(run_dir)
    for path in run_dir.rglob("*"):
        if path.is_file():
            assert "s3cret" not in path.read_text(), path
    masked = load_config(run_dir).env.retriever
    assert masked == f"http://***@127.0.0.1:{server.port}/"
    monkeypatch.delenv(remote.CREDENTIALS_VARIABLE, raising=False)
    with pytest.raises(UserError, match="credentials are masked; give the whole address again, or set PAW_FAST_RETR"):
        search(masked)
    monkeypatch.setenv(remote.CREDENTIALS_VARIABLE, "me:s3cret")
    assert search(masked) == "b"
    assert server.seen == [("/retrieve", "Basic bWU6czNjcmV0")]


@given(st.text("abc:@%?&#", min_size=1, max_size=12).filter(lambda one: "#" not in one and "?" not in one))
def test_no_user_or_password_is_left_in_a_masked_address(user):
    assert mask_credentials(f"at http://{user}@host/retrieve.") == "at http://***@host/retrieve."


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://host/retrieve?topk=3", "http://host/retrieve?topk=3"),
        ("http://host?API_KEY=a1&x=2", "http://host?API_KEY=***&x=2"),
        ("https://h/r?x=1&access_token=abc", "https://h/r?x=1&access_token=***"),
        ("write to me@example.org", "write to me@example.org"),
    ],
)
def test_masked_texts(text, masked):
    assert mask_credentials(text) == masked


def test_a_redirect_on_the_same_host_is_followed_as_a_post(serve):
    def reply(handler):
        if handler.path == "/retrieve":
            answer(handler, 307, b"", location="/v2/retrieve")
        else:
            answer(handler)

    server = serve(reply)
    assert search(f"http://me:s3cret@127.0.0.1:{server.port}") == "b"
    assert server.seen == [("/retrieve", "Basic bWU6czNjcmV0"), ("/v2/retrieve", "Basic bWU6czNjcmV0")]


def test_a_redirect_to_another_host_is_refused(serve):
    other = serve(answer)
    target = f"http://localhost:{other.port}/retrieve"
    server = serve(lambda handler: answer(handler, 302, b"", location=target))
    with pytest.raises(UserError, match=f"redirects to another host, {target}: give that address with --env.retriever"):
        search(f"http://127.0.0.1:{server.port}")
    assert other.seen == []


def test_redirects_that_never_end_are_refused(serve):
    server = serve(lambda handler: answer(handler, 307, b"", location="/retrieve"))
    with pytest.raises(UserError, match="redirects more than 3 times"):
        search(f"http://127.0.0.1:{server.port}")


def test_a_response_has_a_size_limit(serve, monkeypatch):
    monkeypatch.setattr(remote, "MAX_RESPONSE_BYTES", 2**20)
    server = serve(lambda handler: answer(handler, body=RESULT + b" " * 2**21))
    with pytest.raises(UserError, match="sent a response of more than 1 MB"):
        search(f"http://127.0.0.1:{server.port}")


def test_a_response_that_drips_counts_as_no_answer(serve):
    class Stop(Exception):
        pass

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.05)

    server = serve(drip)
    client = remote.RemoteRetriever(f"http://127.0.0.1:{server.port}", retries=0, timeout_s=0.3, pause_s=0.1)

    def check():
        if client.traffic.failures:
            raise Stop

    client.check = check
    with pytest.raises(Stop):
        client.search(["who"], 3)
    client.close()
