"""The server against a client written from the protocol alone (http.client and json), and our client against it."""

import http.client
import json
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_extras import need

from paw_fast.config import env_config
from paw_fast.envs.search_qa.retrieval import bm25, open_index, remote, server
from paw_fast.envs.search_qa.retrieval.records import MAX_QUERY_CHARS, MAX_TOPK, Hit, Passage
from paw_fast.errors import UserError
from paw_fast.rollout.factory import make_env

need("bm25s", "Stemmer", "fastapi", "uvicorn", "httpx")

PASSAGES = [
    Passage("10", "Whales", "The blue whale is the largest animal."),
    Passage("11", "Rivers", "The river Nile flows north to the sea."),
    Passage("12", "", "A whale lives in the sea."),
    Passage("13", "Köln", "Köln lies on the Rhine, a river in Germany."),
]

NILE = '"Rivers"\nThe river Nile flows north to the sea.'


class Running:
    """The real application under uvicorn, on a free port of the loopback, in a thread."""

    def __init__(self, app):
        import uvicorn

        self.socket = server.open_socket("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(10)
        self.socket.close()


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    found = open_index(bm25.build_from(PASSAGES, tmp_path_factory.mktemp("server") / "index"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def running(retriever):
    one = Running(server.make_app(retriever))
    yield one
    one.stop()


def post(port, body, path="/retrieve", headers=None):
    """(status, parsed answer) of one request, as anyone would send it who has read the protocol."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


# ------------------------------------------------------------------------------------------- the two dialects


def test_many_queries_with_scores(running):
    status, answer = post(running.port, {"queries": ["whale", "river"], "topk": 2, "return_scores": True})
    assert status == 200
    whale, river = answer["result"]
    assert [one["document"]["id"] for one in whale] == ["10", "12"]
    assert {one["document"]["id"] for one in river} == {"11", "13"}
    assert whale[1]["document"] == {"id": "12", "contents": "A whale lives in the sea."}
    assert whale[0]["document"]["contents"] == '"Whales"\nThe blue whale is the largest animal.'
    assert whale[0]["score"] >= whale[1]["score"] > 0


def test_many_queries_without_scores_give_bare_documents(running):
    status, answer = post(running.port, {"queries": ["Nile north"], "topk": 1})
    assert (status, answer) == (200, {"result": [[{"id": "11", "contents": NILE}]]})
    assert post(running.port, {"queries": ["Nile north"], "topk": 1, "return_scores": False}) == (status, answer)


def test_a_single_query(running):
    status, answer = post(running.port, {"query": "köln", "topk": 3, "return_scores": True})
    assert status == 200
    ((hit,),) = answer["result"]
    assert hit["document"]["contents"].startswith('"Köln"\nKöln lies')


def test_topk_may_be_left_out_and_null(running):
    many = {"query": "the whale and the river in the sea"}
    assert len(post(running.port, many)[1]["result"][0]) == server.DEFAULT_TOPK
    assert len(post(running.port, many | {"topk": None})[1]["result"][0]) == server.DEFAULT_TOPK
    assert len(post(running.port, many | {"topk": MAX_TOPK})[1]["result"][0]) == 4


def test_what_matches_nothing_is_an_empty_list(running):
    assert post(running.port, {"queries": ["zebra", "whale"], "topk": 1})[1]["result"][0] == []


def test_two_hundred_queries_at_once(running):
    words = ["whale", "river", "sea", "Germany"]
    expected = {word: post(running.port, {"query": word, "topk": 3, "return_scores": True}) for word in words}
    with ThreadPoolExecutor(200) as pool:
        asked = [words[i % 4] for i in range(200)]
        answers = list(pool.map(lambda w: post(running.port, {"query": w, "topk": 3, "return_scores": True}), asked))
    assert all(answer == expected[word] for word, answer in zip(asked, answers, strict=True))


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'{"queries": ["a"', 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[1]", 422, "list, expected an object"),
        ({}, 422, "either `queries`"),
        ({"query": "a", "queries": ["a"]}, 422, "either `queries`"),
        ({"query": ""}, 422, "query 0 is empty"),
        ({"query": " \n"}, 422, "query 0 is empty"),
        ({"query": 3}, 422, "query 0 is empty or not a text"),
        ({"query": ["a"]}, 422, "query 0 is empty or not a text"),
        ({"queries": "a"}, 422, "must be a list"),
        ({"queries": []}, 422, "must be a list"),
        ({"queries": ["a", ""]}, 422, "query 1 is empty"),
        ({"queries": ["a", None]}, 422, "query 1 is empty or not a text"),
        ({"queries": ["a"] * (server.MAX_QUERIES + 1)}, 422, "1 to 1024 texts"),
        ({"query": "a", "topk": 0}, 422, "`topk` is 0"),
        ({"query": "a", "topk": -1}, 422, "`topk` is -1"),
        ({"query": "a", "topk": 1_000_000}, 422, "`topk` is 1000000"),
        ({"query": "a", "topk": "3"}, 422, "`topk` is 3"),
        ({"query": "a", "topk": 2.5}, 422, "`topk` is 2.5"),
        ({"query": "a", "topk": True}, 422, "`topk` is True"),
        (b'{"query": "a", "topk": NaN}', 422, "`topk` is nan"),
        ({"query": "a", "return_scores": "yes"}, 422, "must be true or false"),
        ({"query": "x" * (MAX_QUERY_CHARS + 1)}, 413, "at most 4096"),
        ({"query": "x" * 10_000_000}, 413, "the body has more than"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(running, body, status, reason):
    got = post(running.port, body)
    assert got[0] == status
    assert reason in got[1]["detail"]


def test_a_large_body_in_chunks_is_refused_too(running):
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    chunks = (b"x" * 2**16 for _ in range(160))
    connection.request("POST", "/retrieve", chunks, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()


def test_other_paths_and_methods(running):
    assert post(running.port, {"query": "a"}, path="/other")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.request("GET", "/retrieve")
    assert connection.getresponse().status == 405
    connection.close()
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok", "num_passages": 4}
    connection.close()


def test_the_server_still_answers_after_all_that(running):
    assert post(running.port, {"query": "whale"})[0] == 200


# ----------------------------------------------------------------------------------------------- our own client


@pytest.mark.parametrize("dialect", ["auto", "queries", "query"])
def test_the_client_gets_what_the_index_gives(running, retriever, dialect):
    client = remote.RemoteRetriever(running.url, dialect=dialect)
    queries = ["whale", "zebra", "river sea", "Köln"] * 60
    assert client.search(queries, 2) == retriever.search(queries, 2)
    assert client.search([], 2) == []
    assert client.search(["x " * 5000 + "whale"], 2) == [[]]  # cut, not refused
    assert (client.traffic.queries, client.traffic.failures) == (241, 0)
    client.close()
    client.close()


def app_of(answers):
    """A server that gives these answers in turn, the last one for ever: a status, a body, or "hang"."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


GOOD = (200, json.dumps({"result": [[{"document": {"id": "1", "contents": "x"}, "score": 1.0}]]}).encode())


def test_a_server_that_knows_single_queries_only(running):
    one = Running(app_of([(422, b'{"detail": "field required: query"}'), GOOD]))
    client = remote.RemoteRetriever(one.url)
    assert client.search(["a"], 3)[0][0].passage.text == "x"
    assert client.dialect == "query"
    assert client.traffic.failures == 0
    client.close()
    one.stop()


def test_a_server_that_is_down_is_waited_for_and_the_failures_counted(capsys):
    answers = [(503, b""), (200, b"<html>"), (500, b""), (502, b""), GOOD]
    one = Running(app_of(answers))
    client = remote.RemoteRetriever(one.url, dialect="queries", retries=1, pause_s=0.05)
    checked = []
    client.check = lambda: checked.append(1)
    assert client.search(["a"], 3)[0][0].passage.text == "x"
    assert client.traffic.failures == 4
    assert client.traffic.paused_s > 0
    assert checked
    said = capsys.readouterr().err
    assert said.count("paused: the retriever at") == 1
    assert "answers again" in said
    client.close()
    one.stop()


class Silent:
    """Accepts connections and never answers the first `mute` requests; gives `GOOD` to those after."""

    def __init__(self, mute):
        self.asked, self._mute, self._held = 0, mute, []
        self._listener = server.open_socket("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.asked += 1
            self._held.append(connection)
            if self.asked > self._mute:
                while b"return_scores" not in connection.recv(65536):
                    pass
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(GOOD[1])}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode() + GOOD[1])

    def stop(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._held:
            connection.close()
        self._thread.join(10)


def test_a_server_that_never_answers_is_given_up_after_the_time_limit(tmp_path, capsys):
    """Each request ends at --env.retriever-timeout-s, is tried again, and then the run pauses and says so."""
    (tmp_path / "q.jsonl").write_text('{"question": "q", "answer": "x"}\n')
    one = Silent(mute=4)
    settings = env_config(
        "search", train=(str(tmp_path / "q.jsonl"),), retriever=one.url, retriever_timeout_s=0.2, retriever_retries=2
    )  # fmt: skip
    env = make_env(settings)
    env._batcher.retriever.pause_s = 0.05
    env.reset(env.tasks("train")[0])
    began = time.monotonic()
    step = env.step("search[a]")
    assert 4 * 0.2 <= time.monotonic() - began < 20  # with the default of 30 s it would have been two minutes
    assert step.observation.text == "<information>Doc 1 x</information>"
    assert one.asked == 5
    metrics = env.take_metrics()
    assert metrics["retrieval/failures"] == 4.0
    assert metrics["retrieval/paused_s"] >= 0.2  # the fourth request waited for its limit within the pause
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("paused: the retriever at") == 1
    assert "timed out" in said
    assert "going on" in said
    env.close()
    one.stop()


def test_waiting_ends_when_the_run_is_told_to_stop():
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    listener = server.open_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()  # nobody listens there now
    client = remote.RemoteRetriever(f"http://127.0.0.1:{port}", retries=0, pause_s=0.01)
    client.check = stop
    with pytest.raises(Stop):
        client.search(["a"], 3)
    assert client.traffic.failures == 1
    client.close()


def test_an_environment_waits_for_its_server_until_it_is_told_to_stop():
    """No wrong answer comes of it: the episode stays where it was, and the next try asks again."""
    from paw_fast import envs
    from paw_fast.envs.search_qa.datasets import Question

    listener = server.open_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    env = envs.make("search", train=["unused.jsonl"], retriever=url, retries=0)
    env._splits = {"train": lambda: [Question("1", "Who?", ("x",), "test")]}

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    env.while_waiting(stop)
    other = env.spawn()
    other.reset(env.tasks("train")[0])
    with pytest.raises(Stop):
        other.step("search[a]")
    assert env.take_metrics()["retrieval/failures"] == 1.0
    assert env.take_metrics()["retrieval/failures"] == 0.0
    env.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, b'{"detail": "Not Found"}'), "refused a request with status 404"),
        ((401, b"who are you"), "who are you"),
        ((200, b'{"results": []}'), "another form than"),
        ((200, b'{"result": []}'), "answered 0 of 1 queries"),
        ((200, b'{"result": [[{"document": {"id": "1"}}]]}'), "another form than"),
        ((200, b"[]"), "another form than"),
    ],
)
def test_a_server_that_will_never_answer_stops_the_run(answer, message):
    one = Running(app_of([answer]))
    client = remote.RemoteRetriever(one.url, pause_s=0.01)
    with pytest.raises(UserError) as error:
        client.search(["a"], 3)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    client.close()
    one.stop()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x/retrieve", "", "http://"])
def test_addresses_that_are_none(url):
    with pytest.raises(UserError, match="expected an address like"):
        remote.RemoteRetriever(url)


def test_answers_in_other_shapes():
    bare = remote.read_answer({"result": [[{"id": 4, "contents": '"T"\ntext'}]]}, 1, 3, "x")
    assert bare[0][0].passage == Passage("4", "T", "text")
    flat = remote.read_answer({"result": [{"document": {"id": "1", "title": "T", "text": "x"}}]}, 1, 3, "x")
    assert flat[0][0].passage == Passage("1", "T", "x")
    long = {"result": [[{"contents": str(i)} for i in range(9)]]}
    assert len(remote.read_answer(long, 1, 3, "x")[0]) == 3


@pytest.mark.parametrize(
    "one",
    [
        None, "text", "a document", 3, [], {"document": None}, {"document": None, "score": 1.0}, {"document": "text"},
        {"document": {"id": "1"}}, {"document": {"contents": None}}, {"document": {"contents": 3}}, {"text": ["x"]},
        *({"document": {"contents": "x"}, "score": score} for score in
          (math.nan, math.inf, -math.inf, "2.5", None, True, [1.0], 10**400)),
    ],
)  # fmt: skip
def test_a_hit_of_another_form_names_the_server(one):
    with pytest.raises(UserError, match=r"the retriever at http://here answered in another form"):
        remote.read_answer({"result": [[one]]}, 1, 3, "http://here")


def test_half_characters_from_a_server_are_replaced():
    answer = {"result": [[{"document": {"id": "\ud83d", "contents": '"T\ud83d"\nx\udc00'}, "score": 1}]]}
    assert remote.read_answer(answer, 1, 3, "x")[0][0] == Hit(Passage("\ufffd", "T\ufffd", "x\ufffd"), 1.0)
    assert server.read_request(b'{"query": "half \\ud83d"}')[0] == ["half \ufffd"]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(exclude_categories=()), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["document", "contents", "text", "id", "score", "title"]), inner, max_size=4)
    ),
)


@given(st.fixed_dictionaries({"result": JSON | st.lists(st.lists(JSON, max_size=2), max_size=2)}) | JSON)
def test_any_answer_gives_hits_or_one_line(answer):
    try:
        (hits,) = remote.read_answer(answer, 1, 3, "http://here")
    except UserError as error:
        if "http://here" not in str(error):
            raise
        return
    for hit in hits:
        assert math.isfinite(hit.score)
        hit.passage.contents.encode()
