"""Searches a corpus through an HTTP server with a /retrieve endpoint, in either of two request formats.

    POST /retrieve {"queries": [...], "topk": 3, "return_scores": true}     Search-R1's format
    POST /retrieve {"query": "...", "topk": 3, "return_scores": true}       one query per request
    response       {"result": [[{"document": {"id", "contents"}, "score"}, ...], ...]}

An unavailable server never results in an empty list of passages: requests are retried, and then the client prints a
message and waits until the server responds again. Redirects are followed on the same host only, so that neither queries
nor credentials reach another one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from paw_fast.envs.json_files import replace_surrogates
from paw_fast.envs.search_qa.retrieval.records import MAX_QUERY_CHARS, Hit, Passage
from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs import console
from paw_fast.runs.secrets import MASK, mask_credentials

Dialect = Literal["auto", "queries", "query"]
QUERIES_PER_REQUEST = 128
REQUESTS_AT_ONCE = 16
CHECK_S = 0.5
MAX_RESPONSE_BYTES = 2**26
MAX_REDIRECTS = 3
CREDENTIALS_VARIABLE = "PAW_FAST_RETRIEVER_AUTH"


class Unavailable(Exception):
    """The server did not respond, or responded with a temporary error."""


@dataclass
class Traffic:
    """Counts since they were last reset.

    failures: requests without a usable response (each attempt counts). paused_s: seconds spent waiting for the server.
    """

    queries: int = 0
    failures: int = 0
    paused_s: float = 0.0


class RemoteRetriever:
    """A client of a retrieval server. The module's docstring describes how outages are handled.

    dialect      the request format: `queries`, `query`, or `auto`, which tries `queries` first and keeps what works
    timeout_s    time limit of one request with its response, in seconds
    retries      additional attempts of a request, with growing pauses, before the client starts waiting
    pause_s      seconds between attempts while waiting
    check        called every `CHECK_S` seconds while waiting; may raise to stop (Ctrl-C in a training run)

    `url` may contain credentials (`http://user:password@host`), which messages and run directories do not. A masked
    address, as found in a run's config.toml, takes them from the environment variable `CREDENTIALS_VARIABLE`.

    Raises `UserError` if `url` is not an HTTP address, masked credentials are not given, or httpx is not installed.
    """

    def __init__(
        self, url: str, *, dialect: Dialect = "auto", timeout_s: float = 30.0, retries: int = 3, pause_s: float = 5.0
    ):
        self._address = with_credentials(_full_url(url), os.environ.get(CREDENTIALS_VARIABLE))
        try:
            import httpx
        except ImportError:
            raise UserError(f"httpx is not installed: {install_hint('search')}") from None
        self.url = mask_credentials(self._address)
        self._timeout_s = timeout_s
        self.dialect: Dialect = dialect
        self.retries, self.pause_s = retries, pause_s
        self.num_passages: int | None = None
        self.traffic = Traffic()
        self.check: Callable[[], None] = lambda: None
        self._httpx = httpx
        limits = httpx.Limits(max_connections=REQUESTS_AT_ONCE)
        is_local = urlsplit(self._address).hostname in ("127.0.0.1", "localhost", "::1")  # must not go through a proxy
        self._client = httpx.Client(timeout=timeout_s, limits=limits, follow_redirects=False, trust_env=not is_local)
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="retrieve")

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The best `topk` passages of each query, in order.

        Blocks while the server is unavailable. Raises `UserError` if it rejects the request (status 4xx) or responds
        with an invalid result.
        """
        self.traffic.queries += len(queries)
        texts = [replace_surrogates(query[:MAX_QUERY_CHARS]) for query in queries]
        if not texts:
            return []
        if self.dialect != "auto":
            return self._search(texts, topk, self.dialect)
        try:
            found, self.dialect = self._search(texts, topk, "queries"), "queries"
        except Refused as first:
            try:
                found, self.dialect = self._search(texts, topk, "query"), "query"
            except Refused:
                raise first from None
        return found

    def _search(self, queries: list[str], topk: int, dialect: Dialect) -> list[list[Hit]]:
        if dialect == "query":
            return [hits[0] for hits in self._request_with_retries([({"query": one}, 1) for one in queries], topk)]
        parts = [queries[i : i + QUERIES_PER_REQUEST] for i in range(0, len(queries), QUERIES_PER_REQUEST)]
        answers = self._request_with_retries([({"queries": part}, len(part)) for part in parts], topk)
        return [hits for answer in answers for hits in answer]

    def _request_with_retries(self, requests: list[tuple[dict[str, Any], int]], topk: int) -> list[list[list[Hit]]]:
        """Sends requests of (body, number of queries) concurrently and returns their results in order."""
        answers: list[list[list[Hit]] | None] = [None] * len(requests)
        tries, waiting_since = 0, None
        while True:
            missing = [i for i, answer in enumerate(answers) if answer is None]
            got = self._wait_for([self._threads.submit(self._try, *requests[i], topk) for i in missing])
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
                    f"paused: the retriever at {self.url} does not answer ({problem}); retrying every "
                    f"{self.pause_s:g} s. Start the server (paw-fast retriever serve), or stop with Ctrl-C"
                )
            self._sleep(self.pause_s)
        if waiting_since is not None:
            waited = time.monotonic() - waiting_since
            self.traffic.paused_s += waited
            console.say(f"the retriever at {self.url} answers again after {waited:.0f} s; resuming")
        return [answer for answer in answers if answer is not None]

    def _wait_for(self, answers: list[Future]) -> list[Any]:
        """The results of requests in flight, in order; calls `check` meanwhile, as each may take `timeout_s`."""
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
        """Sends one request. Returns `Unavailable` for temporary errors; raises `UserError` for permanent ones."""
        try:
            status, content = self._post({**body, "topk": topk, "return_scores": True})
        except self._httpx.InvalidURL as error:
            raise UserError(f"--env.retriever {self.url}: not a valid address: {error}") from None
        except self._httpx.TransportError as error:
            return Unavailable(str(error) or type(error).__name__)
        if status >= 500 or status in (408, 425, 429):
            return Unavailable(f"status {status}")
        if status != 200:
            text = content.decode("utf-8", "replace")
            raise Refused(f"the retriever at {self.url} rejected a request with status {status}: {_one_line(text)}")
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            return Unavailable("the response is not JSON")
        return parse_response(answer, num_queries, topk, self.url)

    def _post(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """Returns status and content of the response, after redirects on the same host.

        Raises httpx's `TransportError`, also when the response takes too long, and `UserError` for a response that is
        too large or redirects elsewhere.
        """
        address, deadline = self._address, time.monotonic() + self._timeout_s
        for _ in range(MAX_REDIRECTS + 1):
            content = bytearray()
            with self._client.stream("POST", address, json=body) as response:
                if response.next_request is None:
                    for chunk in response.iter_bytes():
                        content += chunk
                        if len(content) > MAX_RESPONSE_BYTES:
                            limit = MAX_RESPONSE_BYTES // 2**20
                            raise UserError(f"the retriever at {self.url} sent a response of more than {limit} MB")
                        if time.monotonic() > deadline:
                            raise self._httpx.ReadTimeout(f"no complete response within {self._timeout_s:g} s")
                    return response.status_code, bytes(content)
                target = response.next_request.url
            if target.host != urlsplit(address).hostname:
                raise UserError(
                    f"the retriever at {self.url} redirects to another host, {mask_credentials(str(target))}: give "
                    "that address with --env.retriever if you trust it"
                )
            if target.scheme == "http" and urlsplit(address).scheme == "https":
                raise UserError(f"the retriever at {self.url} redirects from https to http: give the http address")
            address = with_user(str(target), urlsplit(address))
        raise UserError(f"the retriever at {self.url} redirects more than {MAX_REDIRECTS} times")

    def close(self) -> None:
        """Closes the connections and stops the threads."""
        self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class Refused(UserError):
    """The server rejected the request: retrying would not help."""


def parse_response(answer: Any, num_queries: int, topk: int, where: str) -> list[list[Hit]]:
    """The hits of a decoded response, with or without scores. Raises `UserError` for any other format.

    >>> parse_response({"result": [[{"document": {"id": "3", "contents": "text"}, "score": 2.5}]]}, 1, 3, "here")
    [[Hit(passage=Passage(passage_id='3', title='', text='text'), score=2.5)]]
    """
    try:
        results = answer["result"]
        if results and isinstance(results[0], dict) and num_queries == 1:
            results = [results]  # some servers respond to a single query with a flat list
        if len(results) != num_queries:
            raise UserError(f"the retriever at {where} returned {len(results)} results for {num_queries} queries")
        return [[_hit(one) for one in hits[:topk]] for hits in results]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the retriever at {where} sent an invalid response, expected {{'result': [[{{'document': {{'id', "
            f"'contents'}}, 'score'}}]]}}: {_shown(answer)}"
        ) from None


def _hit(one: Any) -> Hit:
    """Parses one hit. Raises `KeyError`, `TypeError` or `ValueError` for an invalid format."""
    document, score = (one["document"], one.get("score", 0.0)) if "document" in one else (one, 0.0)
    if not isinstance(document, dict):
        raise TypeError("the document is not an object")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError("the score is not a finite number")
    key = next((key for key in ("contents", "text") if isinstance(document.get(key), str)), None)
    if key is None:
        raise KeyError("the document has neither `contents` nor `text`")
    text = replace_surrogates(document[key])
    name, title = (replace_surrogates("" if document.get(k) is None else str(document[k])) for k in ("id", "title"))
    return Hit(Passage.from_contents(name, text) if key == "contents" else Passage(name, title, text), float(score))


def _full_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(
            f"--env.retriever {mask_credentials(url)}: expected an address like http://127.0.0.1:8000/retrieve"
        )
    return urlunsplit(parts._replace(path="/retrieve" if parts.path in ("", "/") else parts.path))


def with_credentials(url: str, given: str | None) -> str:
    """Replaces masked credentials by `given` ("user:password"). Raises `UserError` if they are masked and not given.

    >>> with_credentials("http://***@host/retrieve", "me:secret")
    'http://me:secret@host/retrieve'
    """
    parts = urlsplit(url)
    if MASK in parts.query:
        raise UserError(f"--env.retriever {url}: its credentials are masked; give the whole address again")
    if not parts.netloc.startswith(f"{MASK}@"):
        return url
    if not given:
        raise UserError(
            f"--env.retriever {url}: its credentials are masked; give the whole address again, or set "
            f"{CREDENTIALS_VARIABLE}=user:password"
        )
    user, _, password = given.partition(":")
    netloc = f"{quote(user, safe='')}:{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc))


def with_user(url: str, source: SplitResult) -> str:
    """Copies the credentials of `source`, if any, to an address on the same host."""
    parts, (user, at, _) = urlsplit(url), source.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{parts.netloc.rpartition('@')[2]}"))


def _shown(value: Any) -> str:
    try:
        return _one_line(repr(value))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists
        return _one_line(str(error))


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 200 else flat[:200] + "..."
