"""The trainer's side of the actors: hands out episodes, sends weights, notices what dies or hangs and starts it anew.

Every wait has a limit and says in its error what it waited for. An actor that dies or hangs is started again with
the weights that are current, and the episodes it had are played again from their beginning, with their seeds.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.models.policy import Policy
from paw_fast.rollout.agent_loop import EpisodeRequest
from paw_fast.rollout.chat_format import declared_stop_ids
from paw_fast.rollout.engines.base import EngineError
from paw_fast.rollout.weight_sync import IpcPublisher, NcclPublisher, Publisher, SharedMemoryPublisher
from paw_fast.rollout.worker_process import (
    Alive,
    Ended,
    Failed,
    LoadWeights,
    Play,
    Ready,
    Said,
    Stop,
    Synced,
    WorkerSpec,
    main,
    send_all,
)
from paw_fast.runs import console, stop_signals
from paw_fast.types import Trajectory

POLL_S = 0.2
MOST_RESTARTS = 3
"""Restarts of an actor without an episode ended in between; one more is an error."""


@dataclass
class _Worker:
    """One process and what it has to do."""

    number: int
    spec: WorkerSpec
    process: Any
    connection: Any
    started_s: float
    ready: bool = False
    seen_s: float = 0.0
    waited_s: float = float("-inf")  # when it last said that it waits for a server, and so reads no orders
    restarts: int = 0
    version: int = -1
    playing: dict[tuple[int, ...], tuple[EpisodeRequest, float | None]] = field(default_factory=dict)
    unsent: list[Any] = field(default_factory=list)
    outbox: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self.sender = threading.Thread(target=send_all, args=(self.connection, self.outbox), daemon=True)
        self.sender.start()

    def send(self, order: Any) -> None:
        """Sends an order, at the latest when the process reads orders. Never waits; `poll` notices its death."""
        if self.ready:
            self.outbox.put(order)
        else:
            self.unsent.append(order)

    def name(self) -> str:
        where = f"; its output is in {self.spec.log}" if self.spec.log else ""
        return f"generator {self.number} (process {self.process.pid}{where})"


class RolloutWorkerPool:
    """A `RolloutWorker` over processes. `stage` is called around waits; it may raise to end them (Ctrl-C)."""

    def __init__(self, config: TrainConfig, policy: Policy, folder: Path, version: int = 0):
        """Starts the actors and waits until they are ready. `folder` takes the model's config and the actors' logs."""
        self.config, self.policy_version = config, version
        self.stage: Callable[[str], AbstractContextManager] = lambda name: nullcontext()
        if config.rollout.gpus and not torch.cuda.is_available():
            raise UserError(f"--rollout.gpus {config.rollout.gpus}: no CUDA device is visible to torch; leave it out")
        self._ended: list[Trajectory] = []
        self._spans: dict[str, list[tuple[str, float, float]]] = {}
        self._metrics: list[dict[str, float]] = []
        self._context = multiprocessing.get_context("spawn")
        folder.mkdir(parents=True, exist_ok=True)
        policy.model.config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        self._stop_ids = declared_stop_ids(getattr(policy.model, "generation_config", None))
        self._folder, self._dtype = folder, str(policy.model.dtype).removeprefix("torch.")
        self._publisher, self.transport = _publisher(config, policy)
        self._publisher.publish(version)
        self._cores = _split_cores(config)
        self._actors = [self._start(number) for number in range(config.rollout.replicas)]
        atexit.register(self.close)
        try:
            self._wait(lambda: all(a.ready for a in self._actors), stop_signals.check)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------ the processes

    def _start(self, number: int) -> _Worker:
        r = self.config.rollout
        gpus = [name.strip() for name in r.gpus.split(",") if name.strip()]
        mine = tuple(gpus[number * r.tensor_parallel : (number + 1) * r.tensor_parallel])
        share = r.memory_share or (0.4 if torch.cuda.is_available() and not mine else None)
        source = self._publisher.source()
        spec = WorkerSpec(
            self.config, self._folder, source, self.policy_version, self._dtype, mine, self._cores[number], share,
            self._folder / f"generator_{number}.log", self._stop_ids,
        )  # fmt: skip
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=main, args=(theirs, spec), daemon=r.tensor_parallel == 1)
        with _environment(spec), stop_signals.blocked():
            process.start()
        theirs.close()
        self._transmit(source, self.policy_version)
        now = time.monotonic()
        return _Worker(number, spec, process, ours, now, seen_s=now, version=self.policy_version)

    def _transmit(self, source: Any, version: int) -> None:
        """In a thread, because a transport may wait for the other side; whoever waits for the answer has a limit."""
        threading.Thread(target=self._publisher.transmit, args=(source, version), daemon=True).start()

    def _restart(self, actor: _Worker, why: str) -> None:
        """Starts an actor anew with its episodes. Raises `EngineError` when it keeps ending."""
        _end(actor)
        actor.restarts += 1
        if actor.restarts > MOST_RESTARTS:
            raise EngineError(f"{actor.name()} {why}, {actor.restarts} times without an episode in between")
        console.say(f"{actor.name()} {why}: starting it anew, {len(actor.playing)} episodes are played again")
        fresh = self._start(actor.number)
        fresh.restarts, fresh.playing = actor.restarts, actor.playing
        self._actors[actor.number] = fresh
        for planned, temperature in fresh.playing.values():
            fresh.send(Play([planned], temperature))

    # ---------------------------------------------------------------------------------------------- episodes

    def submit(self, episodes: Sequence[EpisodeRequest], temperature: float | None = None) -> None:
        groups: dict[int, list[EpisodeRequest]] = {}
        for planned in episodes:
            groups.setdefault(planned[1], []).append(planned)
        for members in groups.values():  # a group stays together: its episodes share the start of their prompts
            actor = min(self._actors, key=lambda a: len(a.playing))
            if not actor.playing:
                actor.seen_s = time.monotonic()
            actor.playing |= {planned[2]: (planned, temperature) for planned in members}
            actor.send(Play(members, temperature))

    def poll(self) -> list[Trajectory]:
        if not self._ended:
            with self.stage("wait"):
                self._receive(POLL_S)
                self._check()
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        for actor in self._actors:
            if actor.playing:
                # There is no order to leave an episode; what comes in later is not waited for any more.
                actor.playing = {}
        self._ended = []

    def _receive(self, timeout_s: float) -> None:
        """Reads what the actors have said, waiting for the first word at most so long."""
        by_connection = {a.connection: a for a in self._actors}
        for connection in wait(list(by_connection), timeout_s):
            actor = by_connection[connection]
            with suppress(EOFError, ConnectionResetError, OSError):
                while actor.connection.poll():
                    self._understand(actor, actor.connection.recv())

    def _understand(self, actor: _Worker, message: Any) -> None:
        actor.seen_s = time.monotonic()
        if isinstance(message, Ready):
            actor.ready = True
            for order in actor.unsent:
                actor.send(order)
            actor.unsent.clear()
        elif isinstance(message, Ended):
            if actor.playing.pop(message.trajectory.seed, None) is not None:
                self._ended.append(message.trajectory)
                actor.restarts = 0
        elif isinstance(message, Synced):
            actor.version = message.version
        elif isinstance(message, Alive):
            self._spans.setdefault(f"generator {actor.number}", []).extend(message.spans)
            if message.waits:
                actor.waited_s = actor.seen_s
            if message.metrics:
                self._metrics.append(message.metrics)
        elif isinstance(message, Said):
            console.say(f"generator {actor.number}: {message.text}")
        elif isinstance(message, Failed):
            if message.mistake:
                raise UserError(message.message.removeprefix("UserError: "))
            console.say(f"{actor.name()}: {message.message}")

    def _check(self) -> None:
        """Starts anew what has died or hangs."""
        r, now = self.config.rollout, time.monotonic()
        for actor in list(self._actors):
            if not actor.process.is_alive():
                with suppress(EOFError, OSError):  # its last words, if it had any
                    while actor.connection.poll():
                        self._understand(actor, actor.connection.recv())
                self._restart(actor, f"has ended (exit status {actor.process.exitcode})")
            elif not actor.ready and now - actor.started_s > r.start_timeout_s:
                raise EngineError(f"waited {r.start_timeout_s:g} s for {actor.name()} to start")
            elif actor.ready and actor.playing and now - actor.seen_s > r.hang_timeout_s:
                self._restart(actor, f"has given no sign of life for {r.hang_timeout_s:g} s")

    def _wait(self, done: Callable[[], bool], on_turn: Callable[[], None]) -> None:
        while not done():
            self._receive(POLL_S)
            self._check()
            on_turn()

    # --------------------------------------------------------------------------------------------- weights

    def update_weights(self, version: int) -> None:
        """Sends the weights as they are to every actor and waits until all use them; one that hangs is started anew."""
        limit = self.config.rollout.sync_timeout_s
        # An actor that is starting still reads the weights of before.
        self._wait(lambda: all(a.ready for a in self._actors), stop_signals.check)
        self._publisher.publish(version)
        self.policy_version = version
        for actor in self._actors:
            actor.send(LoadWeights(version))
            self._transmit(actor.spec.source, version)
        deadline = time.monotonic() + limit

        def in_time() -> None:
            stop_signals.check()
            now, patience = time.monotonic(), max(limit, self.config.rollout.hang_timeout_s)
            for actor in [a for a in self._actors if a.ready and a.version != version]:
                if now <= max(deadline, actor.waited_s + patience):
                    continue
                self._restart(
                    actor,
                    f"has not loaded the weights of version {version} in {limit:g} s (transport: {self.transport}; see "
                    "--rollout.sync-timeout-s)",
                )

        self._wait(lambda: all(a.version == version and a.ready for a in self._actors), in_time)

    def take_spans(self) -> dict[str, list[tuple[str, float, float]]]:
        taken, self._spans = self._spans, {}
        return taken

    def take_metrics(self) -> dict[str, float]:
        self._receive(0)
        taken, self._metrics = self._metrics, []
        return merged(taken)

    def close(self) -> None:
        for actor in self.__dict__.get("_actors", []):
            if actor.process.is_alive() and actor.ready:
                actor.send(Stop())
        for actor in self.__dict__.get("_actors", []):
            actor.process.join(5)
            _end(actor)


def merged(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Counts of several environments as one: sums, and shares weighted with the searches they are shares of.

    >>> merged([{"retrieval/queries": 1.0, "retrieval/known_share": 1.0}, {"retrieval/queries": 3.0}])
    {'retrieval/queries': 4.0, 'retrieval/known_share': 0.25}
    """
    out: dict[str, float] = {}
    for one in counts:
        for name, value in one.items():
            weight = one["retrieval/queries"] if name.endswith("_share") else 1.0
            out[name] = out.get(name, 0.0) + weight * value
    total = max(1.0, out.get("retrieval/queries", 0.0))
    return {name: value / total if name.endswith("_share") else value for name, value in out.items()}


def _end(actor: _Worker) -> None:
    if actor.process.is_alive():
        actor.process.kill()
    actor.process.join(10)
    actor.outbox.put(None)
    actor.sender.join(10)  # what it may be sending fails: nobody is left to read
    actor.connection.close()


def _publisher(config: TrainConfig, policy: Policy) -> tuple[Publisher, str]:
    r, kind = config.rollout, config.rollout.transport
    if kind == "auto":
        on_card = policy.device.type == "cuda" and r.engine == "vllm"
        kind = ("nccl" if r.gpus else "ipc") if on_card else "shared"
    if kind in ("ipc", "nccl") and policy.device.type != "cuda":
        raise UserError(
            f"--rollout.transport {kind} carries weights between GPUs, and the model is on the {policy.device.type}: "
            "say shared, or auto"
        )
    if kind == "ipc" and r.gpus:
        raise UserError(
            f"--rollout.transport ipc stays on one card, and --rollout.gpus is {r.gpus}: say nccl, or leave out gpus"
        )
    if kind == "nccl" and (r.engine != "vllm" or not r.gpus):
        raise UserError(
            "--rollout.transport nccl needs --rollout.engine vllm on cards of its own (--rollout.gpus): say auto"
        )
    if kind == "ipc":
        return IpcPublisher(policy.model), kind
    if kind == "nccl":
        return NcclPublisher(policy.model, r.tensor_parallel), kind
    return SharedMemoryPublisher(policy.model), kind


def _split_cores(config: TrainConfig) -> list[tuple[int, ...]]:
    """Each actor's own cores, the last ones of this process, which keeps the rest. Raises `UserError` for too many."""
    r = config.rollout
    if not r.cores:
        return [()] * r.replicas
    usable = sorted(os.sched_getaffinity(0))
    taken = r.cores * r.replicas
    if taken >= len(usable):
        raise UserError(
            f"--rollout.cores {r.cores} for {r.replicas} processes leaves none of {len(usable)} cores for the trainer"
        )
    kept, given = usable[:-taken], usable[-taken:]
    os.sched_setaffinity(0, kept)
    torch.set_num_threads(len(kept))
    return [tuple(given[i * r.cores : (i + 1) * r.cores]) for i in range(r.replicas)]


class _environment:
    """What a new process must find in its environment before it imports anything."""

    def __init__(self, spec: WorkerSpec):
        self.values = {}
        if spec.gpus:
            self.values["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpus)
        if spec.cores:
            self.values["OMP_NUM_THREADS"] = str(len(spec.cores))

    def __enter__(self) -> None:
        self.before = {key: os.environ.get(key) for key in self.values}
        os.environ.update(self.values)

    def __exit__(self, *error: object) -> None:
        for key, value in self.before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
