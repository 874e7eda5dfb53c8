"""A retriever behind a server that speaks /retrieve, in either dialect.

    POST /retrieve {"queries": [...], "topk": 3, "return_scores": true}     Search-R1's
    POST /retrieve {"query": "...", "topk": 3, "return_scores": true}       one query a request
    answer         {"result": [[{"document": {"id", "contents"}, "score"}, ...], ...]}

A server that is down never becomes an empty answer: requests are tried again, and then the caller waits, says so, and
goes on when the server does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from paw_fast.envs.json_files import whole_text
from paw_fast.envs.search_qa.retrieval.records import MAX_QUERY_CHARS, Hit, Passage
from paw_fast.errors import UserError
from paw_fast.runs import console

Dialect = Literal["auto", "queries", "query"]
QUERIES_PER_REQUEST = 128
REQUESTS_AT_ONCE = 16
CHECK_S = 0.5


class Unavailable(Exception):
    """The server did not answer, or said that it cannot now."""


@dataclass
class Traffic:
    """What was asked and what failed since the counts were last taken.

    failures: requests that got no usable answer (each try counts). paused_s: seconds spent waiting for the server.
    """

    queries: int = 0
    failures: int = 0
    paused_s: float = 0.0


class RemoteRetriever:
    """Asks a server. See the module's text for what happens when it is down.

    dialect      `auto` tries the one that takes many queries at once, then the other, and stays with what works
    timeout_s    of one request
    retries      tries of a request beyond the first, with growing pauses, before all waits
    pause_s      seconds between tries while waiting
    check        called every `CHECK_S` seconds while waiting; may raise to stop it (Ctrl-C in a training run)
    """

    def __init__(
        self, url: str, *, dialect: Dialect = "auto", timeout_s: float = 30.0, retries: int = 3, pause_s: float = 5.0
    ):
        try:
            import httpx
        except ImportError:
            raise UserError("httpx is not installed: pip install 'paw-fast[search]'") from None
        self.url = _full_url(url)
        self.dialect: Dialect = dialect
        self.retries, self.pause_s = retries, pause_s
        self.num_passages: int | None = None
        self.traffic = Traffic()
        self.check: Callable[[], None] = lambda: None
        self._httpx = httpx
        limits = httpx.Limits(max_connections=REQUESTS_AT_ONCE)
        here = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")  # not behind anyone's proxy
        self._client = httpx.Client(timeout=timeout_s, limits=limits, follow_redirects=True, trust_env=not here)
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="retrieve")

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The best `topk` passages of each query, in order.

        Waits as long as the server is down. Raises `UserError` when it refuses the request (a 4xx status) or answers
        with something else than passages.
        """
        self.traffic.queries += len(queries)
        asked = [whole_text(query[:MAX_QUERY_CHARS]) for query in queries]
        if not asked:
            return []
        if self.dialect != "auto":
            return self._ask(asked, topk, self.dialect)
        try:
            found, self.dialect = self._ask(asked, topk, "queries"), "queries"
        except Refused as first:
            try:
                found, self.dialect = self._ask(asked, topk, "query"), "query"
            except Refused:
                raise first from None
        return found

    def _ask(self, queries: list[str], topk: int, dialect: Dialect) -> list[list[Hit]]:
        if dialect == "query":
            return [hits[0] for hits in self._patiently([({"query": one}, 1) for one in queries], topk)]
        parts = [queries[i : i + QUERIES_PER_REQUEST] for i in range(0, len(queries), QUERIES_PER_REQUEST)]
        return [hits for answer in self._patiently([({"queries": p}, len(p)) for p in parts], topk) for hits in answer]

    def _patiently(self, requests: list[tuple[dict[str, Any], int]], topk: int) -> list[list[list[Hit]]]:
        """The answers to requests of (body, number of queries) that are sent at the same time."""
        answers: list[list[list[Hit]] | None] = [None] * len(requests)
        tries, waiting_since = 0, None
        while True:
            missing = [i for i, answer in enumerate(answers) if answer is None]
            got = self._all([self._threads.submit(self._try, *requests[i], topk) for i in missing])
            problem: Unavailable | None = None
            for i, answer in zip(missing, got, strict=True):
                if isinstance(answer, Unavailable):
                    self.traffic.failures += 1
                    problem = answer
                else:
                    answers[i] = answer
            if problem is None:
                break
            tries += 1
            if tries <= self.retries:
                self._sleep(min(0.25 * 2**tries, self.pause_s))
                continue
            if waiting_since is None:
                waiting_since = time.monotonic()
                console.say(
                    f"paused: the retriever at {self.url} does not answer ({problem}); trying again every "
                    f"{self.pause_s:g} s. Start it (paw-fast retriever serve), or stop with Ctrl-C"
                )
            self._sleep(self.pause_s)
        if waiting_since is not None:
            waited = time.monotonic() - waiting_since
            self.traffic.paused_s += waited
            console.say(f"the retriever at {self.url} answers again after {waited:.0f} s; going on")
        return [answer for answer in answers if answer is not None]

    def _all(self, answers: list[Future]) -> list[Any]:
        """What the requests in flight give, in order. A server may take the whole of `timeout_s`."""
        left = set(answers)
        while left:
            left = wait(left, CHECK_S).not_done
            if left:
                self.check()
        return [answer.result() for answer in answers]

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, CHECK_S))
        self.check()

    def _try(self, body: dict[str, Any], num_queries: int, topk: int) -> list[list[Hit]] | Unavailable:
        """One request; what may pass by itself is returned, what will not is raised as `UserError`."""
        try:
            response = self._client.post(self.url, json={**body, "topk": topk, "return_scores": True})
        except self._httpx.InvalidURL as error:
            raise UserError(f"--env.retriever {self.url}: not an address: {error}") from None
        except self._httpx.TransportError as error:
            return Unavailable(str(error) or type(error).__name__)
        if response.status_code >= 500 or response.status_code in (408, 425, 429):
            return Unavailable(f"status {response.status_code}")
        if response.status_code != 200:
            raise Refused(
                f"the retriever at {self.url} refused a request with status {response.status_code}: "
                f"{_one_line(response.text)}"
            )
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            return Unavailable("the answer is not JSON")
        return read_answer(answer, num_queries, topk, self.url)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class Refused(UserError):
    """The server understood and said no: trying again would not help."""


def read_answer(answer: Any, num_queries: int, topk: int, where: str) -> list[list[Hit]]:
    """The hits of an answer, whether its documents come with scores or bare. Raises `UserError` for another form.

    >>> read_answer({"result": [[{"document": {"id": "3", "contents": "text"}, "score": 2.5}]]}, 1, 3, "here")
    [[Hit(passage=Passage(passage_id='3', title='', text='text'), score=2.5)]]
    """
    try:
        results = answer["result"]
        if results and isinstance(results[0], dict) and num_queries == 1:
            results = [results]  # some servers answer a single query with a single list
        if len(results) != num_queries:
            raise UserError(f"the retriever at {where} answered {len(results)} of {num_queries} queries")
        return [[_hit(one) for one in hits[:topk]] for hits in results]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the retriever at {where} answered in another form than {{'result': [[{{'document': {{'id', 'contents'}}, "
            f"'score'}}]]}}: {_one_line(repr(answer))}"
        ) from None


def _hit(one: Any) -> Hit:
    """A hit of an answer. Raises `KeyError`, `TypeError` or `ValueError` for another form."""
    document, score = (one["document"], one.get("score", 0.0)) if "document" in one else (one, 0.0)
    if not isinstance(document, dict):
        raise TypeError("a document that is no object")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError("a score that is no finite number")
    key = next((key for key in ("contents", "text") if isinstance(document.get(key), str)), None)
    if key is None:
        raise KeyError("a document without `contents` or `text`")
    text = whole_text(document[key])
    name, title = (whole_text("" if document.get(k) is None else str(document[k])) for k in ("id", "title"))
    return Hit(Passage.from_contents(name, text) if key == "contents" else Passage(name, title, text), float(score))


def _full_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"--env.retriever {url}: expected an address like http://127.0.0.1:8000/retrieve")
    return urlunsplit(parts._replace(path="/retrieve" if parts.path in ("", "/") else parts.path))


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 200 else flat[:200] + "..."
