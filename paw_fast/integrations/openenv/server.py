"""Serves an environment over OpenEnv's protocol: WebSocket sessions at /ws; health, schema and tasks over HTTP.

client ── Guard (size, origin, one-line errors) ── OpenEnv's routes and sessions ── PawFastEnvironment ── slot
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openenv.core.env_server import ConcurrencyConfig, HTTPEnvServer

from paw_fast.envs.base import Env, one_line
from paw_fast.envs.json_files import decode, may_contain_surrogates
from paw_fast.envs.search_qa.retrieval import http_limits
from paw_fast.errors import UserError
from paw_fast.integrations.openenv.environment import (
    EnvironmentHost,
    PawFastEnvironment,
    TextAction,
    TextObservation,
    TextState,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What clients can take.

    max_sessions       sessions at a time; a further client is told so and disconnected
    idle_timeout_s     a session without a request for this time in seconds loses its episode and its place
    request_timeout_s  time of a reset or a step in seconds; what takes longer ends the session
    max_request_bytes  size of a message or a request body
    """

    max_sessions: int = 64
    idle_timeout_s: float = 900.0
    request_timeout_s: float = 60.0
    max_request_bytes: int = 1 << 16


class Guard:
    """An ASGI application around another: refuses large bodies and pages of other origins, and tells errors in a line.

    A browser sends the origin of the page whose script asks; without this check any page that its user visits could
    use a server on the same machine. Clients that are no browser send none.
    """

    def __init__(self, app: Any, max_request_bytes: int, say: Callable[[str], None]) -> None:
        self._app, self._max_bytes, self._say = app, max_request_bytes, say

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        is_http, started = scope["type"] == "http", False
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await (_respond(send, *refusal) if is_http else send({"type": "websocket.close", "code": 1008}))
            return
        total = 0

        async def limited_receive() -> Message:
            nonlocal total
            message = await receive()
            text = message.get("text")
            if text and may_contain_surrogates(text):  # which no response could carry back
                with contextlib.suppress(ValueError):
                    message["text"] = json.dumps(decode(text)[0])
            total += len(message.get("body") or b"")
            if is_http and total > self._max_bytes:  # a body without Content-Length
                raise ValueError(f"the body has more than {self._max_bytes} bytes")
            return message

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, limited_receive, noting_send)
        except Exception as error:  # whatever a client provokes
            self._say(f"warning: {scope['path'][:200]}: {type(error).__name__}: {one_line(error)[:500]}")
            if is_http and not started:
                await _respond(send, 500, "internal error")

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return 403, "requests of pages from other hosts are refused"
        if scope["type"] != "http":
            return None
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_bytes:
            return 413, f"the body has more than {self._max_bytes} bytes"
        if (scope["method"], scope["path"]) == ("POST", "/step"):
            return 409, "a step needs a session: connect to /ws, as OpenEnv's clients do"
        return None


async def _respond(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
               (b"connection", b"close")]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_app(env: Env, split: str = "train", limits: Limits | None = None, say: Callable[[str], None] = print) -> Any:
    """The ASGI application that serves an environment.

    split: that of resets which name none. say: called with one line for each error that is not a client's own to read.
    Raises `UserError` for a split that does not exist, and for limits that contradict each other.
    """
    limits = limits or Limits()
    if limits.idle_timeout_s <= limits.request_timeout_s:
        raise UserError(
            f"a session is closed after {limits.idle_timeout_s:g} s without a request, but a request may take "
            f"{limits.request_timeout_s:g} s: make the idle timeout longer than the request timeout"
        )
    if len(env.tasks(split)) == 0:
        raise UserError(f"the split {split} of {env.name} has no tasks")
    host = EnvironmentHost(env, split, limits.request_timeout_s, limits.idle_timeout_s)
    server = HTTPEnvServer(
        functools.partial(PawFastEnvironment, host), TextAction, TextObservation, env_name=env.name,
        state_cls=TextState, concurrency_config=ConcurrencyConfig(
            max_concurrent_envs=limits.max_sessions, session_timeout=limits.idle_timeout_s
        ),
    )  # fmt: skip
    # Without the interactive pages, which load scripts from other hosts.
    app = FastAPI(title=f"paw-fast: {env.name}", docs_url=None, redoc_url=None)
    server.register_routes(app, mode="simulation")

    def user_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    app.add_exception_handler(UserError, user_error)
    return Guard(app, limits.max_request_bytes, say)


def serve(app: Any, listener: socket.socket, limits: Limits | None = None, say: Callable[[str], None] = print) -> None:
    """Serves an application of `make_app` on a listening socket until Ctrl-C or SIGTERM."""
    limits = limits or Limits()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().set_exception_handler(http_limits.ErrorLog(say))
            await super().startup(sockets)

    protocol = http_limits.limited_protocol(http_limits.max_connections(), http_limits.REQUEST_TIMEOUT_S)
    config = uvicorn.Config(
        app, http=protocol, ws_max_size=limits.max_request_bytes,
        lifespan="on", backlog=http_limits.BACKLOG, timeout_keep_alive=http_limits.KEEP_ALIVE_S,
        timeout_graceful_shutdown=http_limits.SHUTDOWN_S, log_level="critical", access_log=False,
    )  # fmt: skip
    Server(config).run(sockets=[listener])
