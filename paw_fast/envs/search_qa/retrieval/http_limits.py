"""Limits the time and the connections that clients can take from the retrieval server.

uvicorn limits neither the time in which a client must send its request nor the number of open connections. Without
limits, clients that never finish their requests use up the file descriptors of the process.
"""

from __future__ import annotations

import asyncio
import math
import resource
import time
from collections.abc import Callable
from typing import Any

REQUEST_TIMEOUT_S = 10.0
"""Time limit for receiving a request, from its first byte (or from the connection) to the end of its body."""
KEEP_ALIVE_S = 15
"""Idle connections are closed after this time."""
SEARCH_TIMEOUT_S = 60.0
"""Time limit for the search of one request."""
SHUTDOWN_S = 3
"""Time that running requests have to finish when the server is stopped."""
MAX_CONNECTIONS = 1024
RESERVED_DESCRIPTORS = 64
"""File descriptors that are left for the index, the log and the libraries."""
BACKLOG = 128
"""Connections that the operating system holds until they are accepted."""


def max_connections() -> int:
    """Returns the number of connections that the file descriptors of this process allow, at most `MAX_CONNECTIONS`.

    The soft limit of descriptors is raised to the hard limit, as far as `MAX_CONNECTIONS` needs it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, soft - RESERVED_DESCRIPTORS))


def limited_protocol(connections: int, request_timeout_s: float = REQUEST_TIMEOUT_S) -> type[asyncio.Protocol]:
    """Returns an HTTP protocol class for uvicorn that enforces the limits.

    A connection beyond the limit is answered with status 503, and a request that is not complete in time with 408; both
    are closed.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class LimitedProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _upgraded = False

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._upgraded = True  # from here on, another protocol owns the connection
            self._stop_deadline()
            super().handle_websocket_upgrade(event)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                self._refuse(b"503 Service Unavailable")
            else:
                self._start_deadline()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            self._update_deadline()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._update_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_deadline()
            super().connection_lost(exc)

        def _update_deadline(self) -> None:
            """Runs the deadline while a request has begun and is not complete. Further bytes do not extend it."""
            if self._upgraded:
                return
            begun = self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])
            if begun and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
                self._start_deadline()
            else:
                self._stop_deadline()

        def _start_deadline(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(request_timeout_s, self._refuse, b"408 Request Timeout")

        def _stop_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _refuse(self, status: bytes) -> None:
            if not self.transport.is_closing():
                self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                self.transport.close()

    return LimitedProtocol


class ErrorLog:
    """Exception handler of the server's event loop: one line per minute and message, without tracebacks."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._say, self._clock = say, clock
        self._last: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, now = str(context.get("message", "error")), self._clock()
        if now - self._last.get(message, -math.inf) >= 60.0:
            self._last[message] = now
            error = context.get("exception")
            self._say(f"warning: {message}" + (f": {error}" if error is not None else ""))
