"""Tests the limits of the retrieval server with real processes and sockets."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from search_extras import need

need("bm25s", "Stemmer", "fastapi", "uvicorn", "httpx")

from paw_fast.envs.search_qa.retrieval.http_limits import ErrorLog  # noqa: E402

SERVER = """
import pathlib, resource, sys, tempfile, time
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from paw_fast.envs.search_qa.retrieval import bm25, http_limits, open_index, server
from paw_fast.envs.search_qa.retrieval.records import Passage
http_limits.REQUEST_TIMEOUT_S = 1.0
http_limits.limited_protocol.__defaults__ = (1.0,)
http_limits.SEARCH_TIMEOUT_S = 2.0
index = open_index(bm25.build_from([Passage("1", "Whales", "The blue whale")], pathlib.Path(sys.argv[1]) / "index"))
search = index.search
def slow(queries, topk):
    if queries[0] == "slow":
        time.sleep(60)
    return search(queries, topk)
index.search = slow
listener = server.open_socket("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
server.serve(index, listener)
"""


class Process:
    def __init__(self, folder):
        self.log = folder / "log"
        with self.log.open("w") as log:
            command = [sys.executable, "-c", SERVER, str(folder)]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.port = int(self.process.stdout.readline())
        self.until(lambda: self.ask()[0] == 200)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def ask(self, query="whale", path="/retrieve"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, json.dumps({"query": query}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    @staticmethod
    def until(holds, limit_s=30.0):
        end = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Process(tmp_path_factory.mktemp("limits"))
    yield one
    one.process.kill()
    one.process.wait()
    one.process.stdout.close()


def test_requests_that_are_never_finished_are_closed(server):
    for part in (b"", b"POST /retr", b"POST /retrieve HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\n\r\n{"):
        with server.connect() as half:
            half.sendall(part)
            assert half.recv(1000).startswith(b"HTTP/1.1 408 ")
            assert half.recv(1000) == b""


def test_further_bytes_do_not_extend_the_time_of_a_request(server):
    with server.connect() as half:
        half.sendall(b"POST /retrieve HTTP/1.1\r\n")
        half.settimeout(0.05)
        end = time.monotonic() + 30
        while True:
            assert time.monotonic() < end
            try:
                half.sendall(b"a: b\r\n")
                answer = half.recv(1000)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            assert answer.startswith(b"HTTP/1.1 408 ")
            break


def test_a_connection_can_be_used_again_after_a_response(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(2):
        connection.request("POST", "/retrieve", json.dumps({"query": "whale"}))
        assert b"blue whale" in connection.getresponse().read()
        time.sleep(1.2)  # longer than the limit of a request: an idle connection is not one
    connection.close()


def test_more_half_sent_requests_than_descriptors(server):
    halves = [server.connect() for _ in range(160)]
    for half in halves:
        half.sendall(b"POST /retrieve HTTP/1.1\r\nhost: a\r\ncontent-le")
    server.until(lambda: server.ask()[0] == 200)
    for half in halves:
        half.close()
    assert server.log.stat().st_size < 2000
    assert "Traceback" not in server.log.read_text()


def test_a_client_that_leaves_is_no_traceback(server):
    with server.connect() as half:
        half.sendall(b"POST /retrieve HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\n\r\n{")
    with server.connect() as one:
        one.sendall(b'POST /retrieve HTTP/1.1\r\nhost: a\r\ncontent-length: 18\r\n\r\n{"query": "whale"}')
    assert server.ask()[0] == 200
    assert "Traceback" not in server.log.read_text()


def test_a_search_has_a_time_limit(server):
    status, text = server.ask("slow")
    assert status == 503
    assert json.loads(text) == {"detail": "the search took more than 2 s"}


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_there_are_no_interactive_pages(server, path):
    assert server.ask(path=path)[0] == 404


def test_sigterm_ends_it_with_requests_in_flight(tmp_path):
    one = Process(tmp_path)
    with one.connect() as half, one.connect() as slow:
        half.sendall(b"POST /retrieve HTTP/1.1\r\nhost: a\r\n")
        slow.sendall(b'POST /retrieve HTTP/1.1\r\nhost: a\r\ncontent-length: 17\r\n\r\n{"query": "slow"}')
        time.sleep(0.2)
        assert one.stop() in (0, -signal.SIGTERM)
    one.process.stdout.close()
    assert "Traceback" not in one.log.read_text()
    assert not os.path.exists(f"/proc/{one.process.pid}")


def test_errors_of_the_loop_are_one_line_a_minute():
    lines, now = [], [0.0]
    log = ErrorLog(lines.append, lambda: now[0])
    for _ in range(5):
        log(None, {"message": "cannot accept", "exception": OSError(24, "Too many open files")})
    now[0] = 61.0
    log(None, {"message": "cannot accept"})
    assert lines == ["warning: cannot accept: [Errno 24] Too many open files", "warning: cannot accept"]
