"""Runs ALFWorld episodes on the reference engine (`alfworld` on `textworld`) in separate processes, as an `Env`.

Environments share a few worker processes. A worker that dies or does not respond within the time limit is restarted,
and its episodes are restored by replaying their commands, since the reference is deterministic.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paw_fast.envs.alfworld.env import GameSet, make_observation
from paw_fast.envs.alfworld.games import reference_texts
from paw_fast.envs.alfworld.text import NOTHING_HAPPENS, TASK_PREFIX
from paw_fast.envs.base import BaseEnv, StepResult
from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs import stop_signals
from paw_fast.types import Observation, Task

_LOG = logging.getLogger("paw_fast.envs")
TIME_LIMIT_S = 120.0  # the largest kitchens take 6 s to load on an idle core
KILL_LIMIT_S = 30.0  # to wait for a killed process to end
MAX_COMMAND_CHARS = 1_000  # no admissible command is longer, so a longer one is only ever "Nothing happens."


class WorkerDied(RuntimeError):
    """The worker process ended or did not respond in time."""


class Worker:
    """A worker process. Requests are sent immediately; responses arrive in the same order.

    No call blocks indefinitely: writes do not block (a process that is busy responding does not read requests, so a
    blocking write with full pipes on both sides would deadlock), and a process that does not respond within the time
    limit is killed. slow: run without the caches of `caching`. caches_off_because: why the caches are not installed,
    known once the process has started; None if they are.
    """

    def __init__(self, time_limit_s: float = TIME_LIMIT_S, slow: bool = False) -> None:
        self._slow = slow
        self._time_limit_s = time_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._outgoing, self._buffer = b"", b""
        self._sent: list[int] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._next_ticket = 0
        self.caches_off_because: str | None = None
        self.num_starts = 0  # lets an episode detect that the process that held it is gone

    def send(self, request: dict[str, Any]) -> int:
        """Sends a request and returns its ticket. Starts the process if it is not running."""
        if self._process is None:
            self._start()
        self._outgoing += json.dumps(request).encode("ascii") + b"\n"
        self._write()
        self._next_ticket += 1
        self._sent.append(self._next_ticket)
        return self._next_ticket

    def deadline(self) -> float:
        """The `time.monotonic()` at which a request sent now times out."""
        return time.monotonic() + self._time_limit_s

    def receive(self, ticket: int, deadline: float | None = None) -> dict[str, Any]:
        """Waits for the response to a request. Raises `WorkerDied` if there will be none."""
        deadline = self.deadline() if deadline is None else deadline
        while ticket not in self._answers:
            if ticket not in self._sent:
                raise WorkerDied("the reference engine's process was restarted")
            line = self._read_line(deadline)
            self._answers[self._sent.pop(0)] = line
        return self._answers.pop(ticket)

    def stop(self) -> None:
        """Ends the process. Safe to call twice."""
        process, self._process = self._process, None
        self._sent, self._answers, self._buffer, self._outgoing = [], {}, b"", b""
        if process is None:
            return
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_LIMIT_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _start(self) -> None:
        package_root = str(Path(__file__).resolve().parents[4])
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, environment.get("PYTHONPATH"))))
        # The reference creates this folder on import; an existing one avoids writing to the user's home.
        environment["ALFWORLD_DATA"] = tempfile.gettempdir()
        command = [sys.executable, "-m", "paw_fast.envs.alfworld.textworld.worker", *["--slow"] * self._slow]
        # The process ends itself if a request takes longer, in case this process is gone by then.
        command += ["--time-limit", str(self._time_limit_s + KILL_LIMIT_S)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        with stop_signals.blocked():  # Ctrl-C is handled by this process only
            self._process = subprocess.Popen(
                command, bufsize=0, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment
            )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self.num_starts += 1
        ready = self._read_line(self.deadline())
        if self.caches_off_because is None and ready["caches_off_because"] and not self._slow:
            _LOG.warning("the reference engine runs without its caches: %s", ready["caches_off_because"])
        self.caches_off_because = ready["caches_off_because"]

    def _write(self) -> None:
        """Writes as much of the pending requests as the pipe accepts without blocking."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            while self._outgoing:
                num = os.write(self._process.stdin.fileno(), self._outgoing[: 1 << 16])
                self._outgoing = self._outgoing[num:]
        except BlockingIOError:
            pass
        except OSError:
            raise self._fail("ended") from None

    def _read_line(self, deadline: float) -> dict[str, Any]:
        """Waits for the next response, and continues writing requests meanwhile."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        source, sink = self._process.stdout.fileno(), self._process.stdin.fileno()
        while b"\n" not in self._buffer:
            poll = select.poll()
            poll.register(source, select.POLLIN)
            if self._outgoing:
                poll.register(sink, select.POLLOUT)
            left = deadline - time.monotonic()
            ready = dict(poll.poll(left * 1e3)) if left > 0 else {}
            if not ready:
                raise self._fail(f"did not respond within {self._time_limit_s:g} s")
            can_read, can_write = source in ready, sink in ready
            if can_write:
                self._write()
            if can_read:
                chunk = os.read(source, 1 << 16)
                if not chunk:
                    raise self._fail("ended")
                self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def _fail(self, why: str) -> WorkerDied:
        self.stop()
        return WorkerDied(f"the reference engine's process {why}")


class _Pool:
    """The workers shared by several environments; stopped when the last environment is closed."""

    def __init__(self, num_workers: int, time_limit_s: float) -> None:
        self.workers = [Worker(time_limit_s) for _ in range(num_workers)]
        self._free: list[int] = []  # slots are reused, since a worker's environment objects are never freed
        self._num_slots = 0

    def acquire_slot(self) -> tuple[int, Worker]:
        if not self._free:
            self._free.append(self._num_slots)
            self._num_slots += 1
        slot = self._free.pop()
        return slot, self.workers[slot % len(self.workers)]

    def release_slot(self, slot: int) -> None:
        self._free.append(slot)
        if len(self._free) == self._num_slots:
            for worker in self.workers:
                worker.stop()


class ReferenceEnv(BaseEnv):
    """One ALFWorld episode at a time, on the reference engine.

    num_workers: processes shared by this environment and those it spawns (default: the number of cores, at most 8;
    each needs about 0.1 GB). time_limit_s: time limit of a response in seconds. Raises `UserError` if the extra
    `alfworld` is not installed.
    """

    name = "alfworld"

    def __init__(
        self,
        games: GameSet,
        max_steps: int = 50,
        num_workers: int | None = None,
        time_limit_s: float = TIME_LIMIT_S,
        _pool: _Pool | None = None,
    ) -> None:
        if reference_texts() is None:
            raise UserError(f"the reference engine is not installed: {install_hint('alfworld')}")
        if max_steps < 1:
            raise UserError(f"max_steps is {max_steps}, expected at least 1")
        self._games, self._max_steps = games, max_steps
        self._pool = _pool or _Pool(num_workers or min(os.cpu_count() or 1, 8), time_limit_s)
        self._slot, self._worker = self._pool.acquire_slot()
        self._task: Task | None = None
        self._commands: list[str] = []
        self._done, self._closed, self._num_starts = True, False, -1
        self._ticket = -1

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train", "valid_seen" or "valid_unseen" (alias "unseen"), in a fixed order."""
        return self._games.tasks(split)

    @property
    def disjoint_splits(self) -> bool:
        """Whether no game occurs in two splits, which is known for generated games."""
        return self._games.is_generated

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `UserError` with the file's path if the reference cannot load it."""
        self.begin_reset(task)
        return self.finish_reset()

    def begin_reset(self, task: Task) -> None:
        """The first half of `reset`: sends the request, so that several workers load games concurrently."""
        if self._closed:
            raise RuntimeError("this environment is closed")
        if task.path is None or not task.path.is_file():
            raise UserError(f"no game file at {task.path}: make the task with games.read_task(path)")
        self._task, self._commands, self._done = task, [], True
        self._send()

    def finish_reset(self) -> Observation:
        """The second half of `reset`: waits for the response."""
        assert self._task is not None
        answer = self._receive()
        if "error" in answer:
            raise UserError(f"{self._task.path}: the reference engine cannot load it: {answer['error']}")
        self._done = False
        sentence = answer["text"].rpartition(TASK_PREFIX)[2]
        return self._observation(answer, sentence.removesuffix("."))

    def step(self, command: str) -> StepResult:
        """Carries out one command. Raises `RuntimeError` before the first reset or after `done`."""
        self.begin_step(command)
        return self.finish_step()

    def begin_step(self, command: str) -> None:
        """The first half of `step`: sends the command."""
        if self._task is None or self._done:
            raise RuntimeError("step without an episode, or after its end: call reset first")
        command = command.strip()  # as the native engine does
        self._commands.append(command if len(command) <= MAX_COMMAND_CHARS else "")
        self._send()

    def finish_step(self) -> StepResult:
        """The second half of `step`: waits for the answer."""
        assert self._task is not None
        answer = self._receive()
        if "error" in answer:
            self._done = True
            raise UserError(f"{self._task.path}: the reference engine failed: {answer['error']}")
        won = answer["won"]
        self._done = won or len(self._commands) >= self._max_steps
        truncated = self._done and not won
        admissible = answer["text"] != NOTHING_HAPPENS
        return StepResult(self._observation(answer), self._done, won, truncated=truncated, admissible=admissible)

    def _request(self, num_commands: int) -> dict[str, Any]:
        """The request that starts the episode (0) or executes its command number `num_commands`."""
        assert self._task is not None
        if num_commands == 0:
            return {"op": "reset", "slot": self._slot, "path": str(self._task.path)}
        return {"op": "step", "slot": self._slot, "command": self._commands[num_commands - 1]}

    def _send(self) -> None:
        try:
            if self._commands and self._num_starts != self._worker.num_starts:
                self._ticket = -1  # the episode was lost with its worker: `_receive` replays it
                return
            self._ticket = self._worker.send(self._request(len(self._commands)))
            self._num_starts = self._worker.num_starts
        except WorkerDied:
            self._ticket = -1

    def _receive(self) -> dict[str, Any]:
        assert self._task is not None
        if self._ticket >= 0:
            try:
                return self._worker.receive(self._ticket)
            except WorkerDied:
                pass
        for attempt in (1, 2):
            try:
                return self._replay()
            except WorkerDied as error:
                if attempt == 2:
                    doing = f"with the command {self._commands[-1][:80]!r}" if self._commands else "when it was loaded"
                    raise UserError(f"{self._task.path}: {error}, also after a restart ({doing})") from None
        raise AssertionError

    def _replay(self) -> dict[str, Any]:
        """Loads the game and replays the episode's commands within one time limit; returns the last response."""
        answer: dict[str, Any] = {}
        deadline = self._worker.deadline()
        for num in range(len(self._commands) + 1):
            answer = self._worker.receive(self._worker.send(self._request(num)), deadline)
        self._num_starts = self._worker.num_starts
        return answer

    def _observation(self, answer: dict[str, Any], task: str = "") -> Observation:
        return make_observation(answer["text"], tuple(answer["admissible"]), task)

    def spawn(self) -> ReferenceEnv:
        """Another episode over the same games, in the same worker processes."""
        return ReferenceEnv(self._games, self._max_steps, _pool=self._pool)

    def close(self) -> None:
        """Stops the workers if no other environment uses them. Safe to call twice."""
        if not self._closed:
            self._closed, self._done = True, True
            self._pool.release_slot(self._slot)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()
