"""Starts a process that holds an environment, sends it requests, and ends it when it does not respond in time."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paw_fast.envs.isolated.host import LENGTH, frame
from paw_fast.errors import UserError
from paw_fast.runs import stop_signals

START_LIMIT_S = 300.0
"""Seconds in which a process must have made its environment, or listed its tasks."""
KILL_LIMIT_S = 30.0
LOOK_S = 0.2
MAX_LOG_BYTES = 1 << 20


class ProcessLost(Exception):
    """The process ended, or was ended because it did not respond in time. `ticket`: the request it was busy with."""

    def __init__(self, why: str, ticket: int) -> None:
        super().__init__(why)
        self.why, self.ticket = why, ticket


class HostProcess:
    """One process. It executes requests in the order in which they are sent; responses come in the same order.

    `start` is that of the environment: config, further keywords, time limit in seconds of a reset or step. The limit of
    a request begins when the process can have begun with it. `num_starts` tells episodes that their process is gone.
    """

    def __init__(self, start: tuple[Any, dict[str, Any], float], on_wait: Callable[[], None] = lambda: None) -> None:
        self._start_message, self._limit_s = start, start[2]
        self.on_wait = on_wait
        self._process: subprocess.Popen[bytes] | None = None
        self._outgoing, self._buffer = b"", bytearray()
        self._sent: deque[tuple[int, float, float]] = deque()  # ticket, time sent, limit in seconds
        self._answers: dict[int, tuple[str, Any, dict[str, float]]] = {}
        self._lost: dict[int, ProcessLost] = {}
        self._next_ticket, self._answered_s = 0, 0.0
        self.num_starts = 0

    @property
    def runs(self) -> bool:
        """Whether it was started and has not been ended since."""
        return self._process is not None

    def send(self, request: tuple[str, int, Any], limit_s: float | None = None) -> int:
        """Sends a request and returns its ticket; starts the process if it does not run. `limit_s` None: that of the
        process. Raises `UserError` if the environment cannot be made."""
        if self._process is None:
            self._start()
        self._next_ticket += 1
        self._outgoing += frame(request)
        self._sent.append((self._next_ticket, time.monotonic(), self._limit_s if limit_s is None else limit_s))
        with contextlib.suppress(ProcessLost):  # told to each by `receive`
            self._write()
        return self._next_ticket

    def receive(self, ticket: int) -> tuple[str, Any, dict[str, float]]:
        """Waits for a response. Raises `ProcessLost` if there will be none."""
        while ticket not in self._answers:
            if ticket in self._lost:
                raise self._lost.pop(ticket)
            assert any(ticket == sent[0] for sent in self._sent)
            with contextlib.suppress(ProcessLost):
                self._look()
        return self._answers.pop(ticket)

    def stop(self) -> None:
        """Ends the process and those that it started. Safe to call twice."""
        process, self._process = self._process, None
        self._outgoing, self._buffer = b"", bytearray()
        self._sent.clear()
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_LIMIT_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._log.close()

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[3])
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        self._log = tempfile.TemporaryFile(mode="a+b")  # noqa: SIM115  # read when the process ends
        with stop_signals.blocked():  # Ctrl-C is handled by this process only
            self._process = subprocess.Popen(
                [sys.executable, "-m", "paw_fast.envs.isolated.host"], bufsize=0, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self._log, env=environment, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self.num_starts += 1
        self._next_ticket += 1
        self._outgoing = frame([one for one in sys.path if one]) + frame(self._start_message)
        self._sent.append((self._next_ticket, time.monotonic(), max(START_LIMIT_S, self._limit_s)))
        try:
            status, value, _ = self.receive(self._next_ticket)
        except ProcessLost as error:
            raise UserError(f"--env {self._start_message[0].name}: {error.why} while it was made") from None
        if status != "ok":
            self.stop()
            name = self._start_message[0].name
            raise UserError(value if status == "mistake" else f"--env {name} cannot be made: {value}")

    def _write(self) -> None:
        """Writes as much as the pipe accepts without blocking."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            while self._outgoing:
                num = os.write(self._process.stdin.fileno(), self._outgoing[: 1 << 16])
                self._outgoing = self._outgoing[num:]
        except BlockingIOError:
            pass
        except OSError:
            raise self._fail() from None

    def _look(self) -> None:
        """Waits a moment for the next response, and goes on writing. Raises `ProcessLost`."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        source, sink = self._process.stdout.fileno(), self._process.stdin.fileno()
        poll = select.poll()
        poll.register(source, select.POLLIN)
        if self._outgoing:
            poll.register(sink, select.POLLOUT)
        _, sent_s, limit_s = self._sent[0]
        left = max(sent_s, self._answered_s) + limit_s - time.monotonic()
        ready = dict(poll.poll(max(0.0, min(left, LOOK_S)) * 1e3))
        if sink in ready:
            self._write()
        if source in ready:
            chunk = os.read(source, 1 << 20)
            if not chunk:
                raise self._fail()
            self._buffer += chunk
            self._take_answers()
        elif left <= 0:
            raise self._fail(f"its process did not respond within {limit_s:g} s")
        if not ready:
            self.on_wait()

    def _take_answers(self) -> None:
        while len(self._buffer) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            self._answers[self._sent.popleft()[0]] = pickle.loads(bytes(self._buffer[LENGTH.size : end]))
            del self._buffer[:end]
            self._answered_s = time.monotonic()
        with contextlib.suppress(OSError):
            if os.fstat(self._log.fileno()).st_size > MAX_LOG_BYTES:
                os.ftruncate(self._log.fileno(), 0)

    def _fail(self, why: str = "") -> ProcessLost:
        """Ends the process; every request that waits is lost."""
        assert self._process is not None
        waiting = [ticket for ticket, _, _ in self._sent]
        if not why:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        why = why or f"its process ended ({_ending(self._process.poll())}){self._last_words()}"
        self.stop()
        error = ProcessLost(why, waiting[0])
        self._lost |= dict.fromkeys(waiting, error)
        return error

    def _last_words(self) -> str:
        self._log.seek(max(0, os.fstat(self._log.fileno()).st_size - 4000))
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return f", its last output: {lines[-1][:200]!r}" if lines else ""


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"
