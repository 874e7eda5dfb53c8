"""Serves a retriever over HTTP (`paw-fast retriever serve`): POST /retrieve in both request formats, GET /health.

Invalid requests get a 4xx status with {"detail": reason}; `remote.py` describes the protocol.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

from paw_fast.envs.json_files import replace_surrogates
from paw_fast.envs.search_qa.retrieval import http_limits
from paw_fast.envs.search_qa.retrieval.records import MAX_QUERY_CHARS, MAX_TOPK, Hit, Retriever
from paw_fast.errors import UserError
from paw_fast.extras import install_hint

DEFAULT_TOPK = 3
MAX_QUERIES = 1024
MAX_BODY_BYTES = 2**21
MAX_DRAINED_BYTES = 2**26
"""How much of a too large body is read before responding, so that the client receives the error response."""


class BadRequest(Exception):
    """An invalid request: the HTTP `status` and the `reason`."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def parse_request(body: bytes, default_topk: int = DEFAULT_TOPK) -> tuple[list[str], int, bool]:
    """Parses a request body into (queries, topk, whether to return scores). Raises `BadRequest`.

    >>> parse_request(b'{"query": "who", "topk": 2}')
    (['who'], 2, False)
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(400, f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise BadRequest(422, f"the body is a JSON {type(request).__name__}, expected an object")
    if ("query" in request) == ("queries" in request):
        raise BadRequest(422, "expected either `queries` (a list of strings) or `query` (a string)")
    queries = request["queries"] if "queries" in request else [request["query"]]
    if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_QUERIES:
        raise BadRequest(422, f"`queries` must be a list of 1 to {MAX_QUERIES} strings")
    for number, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            raise BadRequest(422, f"query {number} is empty or not a string")
        if len(query) > MAX_QUERY_CHARS:
            raise BadRequest(413, f"query {number} has {len(query)} characters, at most {MAX_QUERY_CHARS} are allowed")
    topk = request.get("topk")
    topk = default_topk if topk is None else topk
    if not isinstance(topk, int) or isinstance(topk, bool) or not 1 <= topk <= MAX_TOPK:
        raise BadRequest(422, f"`topk` is {str(topk)[:40]}, expected an integer from 1 to {MAX_TOPK}")
    scores = request.get("return_scores")
    if scores is not None and not isinstance(scores, bool):
        raise BadRequest(422, "`return_scores` must be true or false")
    return [replace_surrogates(query) for query in queries], topk, bool(scores)


def encode_response(results: list[list[Hit]], with_scores: bool) -> bytes:
    """The response body, as ASCII-only JSON."""

    def plain(hit: Hit) -> dict[str, Any]:
        document = {"id": hit.passage.passage_id, "contents": hit.passage.contents}
        return {"document": document, "score": hit.score} if with_scores else document

    return json.dumps({"result": [[plain(hit) for hit in hits] for hits in results]}).encode("ascii")


async def read_body(chunks: AsyncIterator[bytes]) -> bytes:
    """Reads a request body. Raises `BadRequest` if it is too large, after draining it up to `MAX_DRAINED_BYTES`."""
    kept, total = [], 0
    async for chunk in chunks:
        total += len(chunk)
        if total <= MAX_BODY_BYTES:
            kept.append(chunk)
        elif total > MAX_DRAINED_BYTES:
            break
    if total > MAX_BODY_BYTES:
        raise BadRequest(413, f"the body has more than {MAX_BODY_BYTES} bytes")
    return b"".join(kept)


def make_app(retriever: Retriever, default_topk: int = DEFAULT_TOPK) -> Any:
    """The FastAPI application that serves a retriever. Raises `UserError` if the extra `search` is not installed."""
    try:
        import anyio
        from fastapi import FastAPI, Request, Response
        from fastapi.responses import JSONResponse
        from starlette.requests import ClientDisconnect
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: {install_hint('search')}") from None
    # Without the interactive pages, which load scripts from other hosts.
    app = FastAPI(title="paw-fast retriever", docs_url=None, redoc_url=None, openapi_url=None)

    async def retrieve(request: Request) -> Response:
        try:
            queries, topk, with_scores = parse_request(await read_body(request.stream()), default_topk)
        except BadRequest as why:
            return JSONResponse({"detail": why.reason}, why.status)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody receives it
        try:
            with anyio.fail_after(http_limits.SEARCH_TIMEOUT_S):
                results = await anyio.to_thread.run_sync(retriever.search, queries, topk, abandon_on_cancel=True)
        except TimeoutError:
            return JSONResponse({"detail": f"the search took more than {http_limits.SEARCH_TIMEOUT_S:g} s"}, 503)
        return Response(encode_response(results, with_scores), media_type="application/json")

    async def health() -> dict[str, Any]:
        return {"status": "ok", "num_passages": retriever.num_passages}

    # Annotations are strings in this module, and FastAPI would resolve them in the module's globals.
    retrieve.__annotations__ = {"request": Request}
    health.__annotations__ = {}
    app.add_api_route("/retrieve", retrieve, methods=["POST"], response_model=None)
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    return app


def open_socket(host: str, port: int) -> socket.socket:
    """Opens a listening socket; port 0 picks a free port. Raises `UserError` if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=http_limits.BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}:{port}: {reason}; choose another --port or --host") from None


def serve(retriever: Retriever, listener: socket.socket, default_topk: int = DEFAULT_TOPK) -> None:
    """Serves requests until Ctrl-C or SIGTERM, with the limits of `http_limits`.

    Raises `UserError` if the extra `search` is not installed.
    """
    try:
        import uvicorn
    except ImportError:
        raise UserError(f"uvicorn is not installed: {install_hint('search')}") from None

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().set_exception_handler(
                http_limits.ErrorLog(lambda line: print(line, file=sys.stderr, flush=True))
            )
            await super().startup(sockets)

    Server(server_config(make_app(retriever, default_topk))).run(sockets=[listener])


def server_config(app: Any) -> Any:
    """The uvicorn configuration of an application, with the limits of `http_limits`."""
    import uvicorn

    return uvicorn.Config(
        app, http=http_limits.limited_protocol(http_limits.max_connections()), ws="none", lifespan="off",
        backlog=http_limits.BACKLOG, timeout_keep_alive=http_limits.KEEP_ALIVE_S,
        timeout_graceful_shutdown=http_limits.SHUTDOWN_S, log_level="error", access_log=False,
    )  # fmt: skip
