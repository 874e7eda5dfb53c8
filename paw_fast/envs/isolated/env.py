"""Defines `IsolatedEnv`, an environment whose episodes run in processes of their own."""

from __future__ import annotations

import dataclasses
import functools
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from paw_fast.config.schema import EnvConfig
from paw_fast.envs.base import BaseEnv, EpisodeLost, StepResult
from paw_fast.envs.counters import merged
from paw_fast.envs.isolated.process import START_LIMIT_S, HostProcess, ProcessLost
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

MAX_PROCESSES = 8


class _Pool:
    """The processes that the episode slots of an environment share; ended when the last slot is closed, and when the
    program ends."""

    def __init__(self, config: EnvConfig, more: dict[str, Any]) -> None:
        assert config.time_limit_s is not None
        self.config = config
        self._check: list[Callable[[], None]] = []
        number = config.processes or min(os.cpu_count() or 1, MAX_PROCESSES)
        start = (dataclasses.replace(config, time_limit_s=None), more, config.time_limit_s)
        wait = functools.partial(_call_all, self._check)  # holds no reference to the pool
        self.hosts = [HostProcess(start, wait) for _ in range(number)]
        self._free: list[int] = []
        self._num_slots = 0
        self._counts: list[dict[str, float]] = []
        self._known: dict[tuple[str, Any], Any] = {}
        self._finalizer = weakref.finalize(self, _stop_all, self.hosts)

    def while_waiting(self, check: Callable[[], None]) -> None:
        self._check[:] = [check]

    def acquire_slot(self) -> tuple[int, HostProcess]:
        if not self._free:
            self._free.append(self._num_slots)
            self._num_slots += 1
        slot = self._free.pop()
        return slot, self.hosts[slot % len(self.hosts)]

    def release_slot(self, slot: int) -> None:
        self._free.append(slot)
        if len(self._free) == self._num_slots:
            _stop_all(self.hosts)

    def ask(self, operation: str, argument: Any = None, keep: bool = False) -> Any:
        """Asks the first process something that belongs to no episode. `keep`: the answer is always the same."""
        if keep and (operation, argument) in self._known:
            return self._known[operation, argument]
        host, name = self.hosts[0], self.config.name
        try:
            status, value, counts = host.receive(host.send((operation, -1, argument), START_LIMIT_S))
        except ProcessLost as error:
            raise UserError(f"--env {name}: {error.why} ({operation})") from None
        self.count(counts)
        if status != "ok":
            raise UserError(value if status != "failed" else f"--env {name}: its {operation} failed: {value}")
        if keep:
            self._known[operation, argument] = value
        return value

    def count(self, counts: dict[str, float]) -> None:
        if counts:
            self._counts.append(counts)

    def take_counts(self) -> dict[str, float]:
        taken, self._counts = self._counts, []
        return merged(taken)


def _call_all(checks: Sequence[Callable[[], None]]) -> None:
    for check in checks:
        check()


def _stop_all(hosts: Sequence[HostProcess]) -> None:
    for host in hosts:
        host.stop()


class IsolatedEnv(BaseEnv):
    """Runs the episodes of an environment in `config.processes` processes, each with its share of the slots.

    A reset or step that takes longer than `config.time_limit_s`, or whose process ends, raises `EpisodeLost`, and so
    does the next call of every other episode of that process: it is restarted with the next reset. Other exceptions of
    the environment are `UserError`s that name its file and line. `more`: further keywords of the environment's `make`.
    """

    def __init__(self, config: EnvConfig, more: dict[str, Any], _pool: _Pool | None = None) -> None:
        self.name = config.name
        self._pool = _pool or _Pool(config, more)
        self._slot, self._host = self._pool.acquire_slot()
        self._closed, self._running, self._num_starts = False, False, -1
        self._ticket: int | None = None
        self._doing, self._task_id = "", ""
        if _pool is None:
            self._pool.ask("disjoint", keep=True)  # starts the first process: what it cannot do is told now

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split, as the environment lists them."""
        return self._pool.ask("tasks", split, keep=True)

    @property
    def disjoint_splits(self) -> bool:
        return self._pool.ask("disjoint", keep=True)

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `EpisodeLost` where the process hangs or ends, and `UserError`."""
        self.begin_reset(task)
        return self.finish_reset()

    def begin_reset(self, task: Task) -> None:
        if self._closed:
            raise RuntimeError("this environment is closed")
        self._running, self._task_id, self._doing = False, task.task_id, "reset"
        self._ticket = self._host.send(("reset", self._slot, task))
        self._num_starts = self._host.num_starts

    def finish_reset(self) -> Observation:
        observation = self._receive()
        self._running = True
        return observation

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `EpisodeLost`, `UserError`, and `RuntimeError` before the first reset or after
        `done`."""
        self.begin_step(command)
        return self.finish_step()

    def begin_step(self, command: str) -> None:
        if not self._running:
            raise RuntimeError("step without an episode: call reset first")
        self._doing = f"step {command[:80]!r}"
        if self._num_starts != self._host.num_starts or not self._host.runs:
            self._ticket = None
        else:
            self._ticket = self._host.send(("step", self._slot, command))

    def finish_step(self) -> StepResult:
        result = self._receive()
        self._running = not result.done
        return result

    def _receive(self) -> Any:
        ticket, self._ticket = self._ticket, None
        where = f"--env {self.name}, task {self._task_id}, {self._doing}"
        if ticket is None:
            self._running = False
            raise EpisodeLost(f"{where}: its process was restarted because of another episode", caused=False)
        try:
            status, value, counts = self._host.receive(ticket)
        except ProcessLost as error:
            self._running = False
            raise EpisodeLost(f"{where}: {error.why}", caused=error.ticket == ticket) from None
        self._pool.count(counts)
        if status == "ok":
            return value
        self._running = False
        if status == "lost":
            raise EpisodeLost(value)
        raise UserError(value if status == "mistake" else f"{where} failed: {value}")

    def accepts(self, command: str, observation: Observation) -> bool:
        return self._pool.ask("accepts", (command, observation))

    def from_keyboard(self, typed: str, observation: Observation) -> str:
        return self._pool.ask("from_keyboard", (typed, observation))

    def while_waiting(self, check: Callable[[], None]) -> None:
        """Registers `check`, which is called while any slot of the environment waits."""
        self._pool.while_waiting(check)

    def take_metrics(self) -> dict[str, float]:
        return self._pool.take_counts()

    def spawn(self) -> IsolatedEnv:
        """Creates another episode slot, in one of the same processes."""
        return IsolatedEnv(self._pool.config, {}, self._pool)

    def close(self) -> None:
        """Ends the episode, and the processes with the last slot. Safe to call twice."""
        if not self._closed:
            self._closed, self._running = True, False
            self._pool.release_slot(self._slot)
