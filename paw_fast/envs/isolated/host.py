"""Runs the episodes of an environment in a process of its own, on request.

    parent ── (operation, slot, argument) ──> this process          each a pickle after its length
    parent <── (status, value, counts) ────── this process

| operation | slot | argument | value |
| --- | --- | --- | --- |
| `tasks` | | a split | its tasks |
| `disjoint` | | | `Env.disjoint_splits` |
| `reset` | which episode | a task | the first observation |
| `step` | which episode | a command | the `StepResult` |
| `accepts`, `from_keyboard` | | (command, observation) | as of `Env` |
| `close` | which episode | | |

Status: `ok`; `mistake`, a `UserError`; `lost`, an `EpisodeLost`; `failed`, any other exception. The last three have the
message as their value. `counts`: what the environment has counted since the last response (`Env.take_metrics`).
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import struct
import sys
import traceback
from typing import IO, Any

from paw_fast.envs.base import Env, EpisodeLost, one_line
from paw_fast.errors import UserError
from paw_fast.runs import stop_signals

LENGTH = struct.Struct("<Q")
ORPHAN_S = 60.0
"""A process whose parent may be gone ends itself when a request lasts this much longer than its limit."""


class _Host:
    def __init__(self, env: Env) -> None:
        self._env = env
        self._slots: dict[int, Env] = {}

    def answer(self, operation: str, slot: int, argument: Any) -> Any:
        if operation == "reset":
            if slot not in self._slots:
                self._slots[slot] = self._env.spawn()
            return self._slots[slot].reset(argument)
        if operation == "step":
            return self._slots[slot].step(argument)
        if operation == "close":
            if slot in self._slots:
                self._slots.pop(slot).close()
            return None
        if operation == "tasks":
            return tuple(self._env.tasks(argument))
        if operation == "disjoint":
            return bool(self._env.disjoint_splits)
        return getattr(self._env, operation)(*argument)

    def forget(self, slot: int) -> None:
        """Drops an episode slot in which something failed: its next episode gets another one."""
        self._slots.pop(slot, None)

    def take_counts(self) -> dict[str, float]:
        return self._env.take_metrics()


def respond(host: Any, operation: str, slot: int, argument: Any) -> tuple[str, Any, dict[str, float]]:
    """Executes one request, and returns (status, value, counts)."""
    try:
        return "ok", host.answer(operation, slot, argument), host.take_counts()
    except EpisodeLost as error:
        host.forget(slot)
        return "lost", one_line(error), {}
    except UserError as error:
        return "mistake", str(error), {}
    except Exception as error:  # an environment of others can fail in any way
        host.forget(slot)
        return "failed", described(error), {}


def described(error: BaseException) -> str:
    """Type, message and place of an exception, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = one_line(error)
    message = "" if text == type(error).__name__ else f": {text[:500]}"
    return f"{type(error).__name__}{message}{place}"


def main() -> None:
    """Serves requests until standard input is closed."""
    stop_signals.ignore_in_child()
    requests = os.fdopen(os.dup(0), "rb")
    responses = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what the environment prints must not come between the responses
    sys.path[:] = _read(requests)
    from paw_fast.envs import make_env

    try:
        config, more, limit_s = _read(requests)
        host = _Host(make_env(config, **more))
    except UserError as error:
        _write(responses, ("mistake", str(error), {}))
        return
    except Exception as error:
        _write(responses, ("failed", described(error), {}))
        return
    _write(responses, ("ok", None, {}))
    while True:
        try:
            operation, slot, argument = _read(requests)
        except EOFError:
            break
        if operation in ("reset", "step"):
            faulthandler.dump_traceback_later(limit_s + ORPHAN_S, exit=True)
        response = respond(host, operation, slot, argument)
        faulthandler.cancel_dump_traceback_later()
        try:
            _write(responses, response)
        except BrokenPipeError:  # the parent is gone
            break
    os._exit(0)  # threads and child processes of the environment must not keep this process alive


def _read(source: IO[bytes]) -> Any:
    header = source.read(LENGTH.size)
    if len(header) < LENGTH.size:
        raise EOFError
    return pickle.loads(source.read(LENGTH.unpack(header)[0]))


def frame(message: Any) -> bytes:
    """The bytes of a message."""
    data = pickle.dumps(message)
    return LENGTH.pack(len(data)) + data


def _write(sink: IO[bytes], message: Any) -> None:
    try:
        data = frame(message)
    except Exception as error:  # not everything can be pickled
        data = frame(("failed", f"its answer cannot be sent to another process: {described(error)}", {}))
    sink.write(data)
    sink.flush()


if __name__ == "__main__":
    main()
