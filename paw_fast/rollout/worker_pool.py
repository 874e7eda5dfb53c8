"""Plays episodes in worker processes: distributes them, sends weights, restarts processes that die or hang.

Every wait has a limit, and its error says what it waited for. A restarted process gets the current weights and plays
the episodes it had again from their first step, with the same seeds.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from paw_fast.config import TrainConfig
from paw_fast.envs.counters import merged
from paw_fast.errors import UserError
from paw_fast.models.policy import Policy
from paw_fast.rollout.agent_loop import InFlight, Stage, untimed
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
from paw_fast.types import EpisodeId, EpisodeRequest, Trajectory

POLL_S = 0.2
MAX_RESTARTS = 3
"""Restarts of a process without an episode that ends in between; one more is an error."""


@dataclass
class _Worker:
    """One process and the work it has."""

    number: int
    spec: WorkerSpec
    process: Any
    connection: Any
    started_s: float
    ready: bool = False
    seen_s: float = 0.0
    waited_s: float = float("-inf")  # when it last said that it waits for a server, and so reads no messages
    restarts: int = 0
    version: int = -1
    playing: dict[EpisodeId, tuple[EpisodeRequest, float | None]] = field(default_factory=dict)
    unsent: list[Any] = field(default_factory=list)
    outbox: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    in_flight: InFlight = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sender = threading.Thread(target=send_all, args=(self.connection, self.outbox), daemon=True)
        self.sender.start()

    def send(self, message: Any) -> None:
        """Sends a message, or keeps it until the process is ready. Never waits; `poll` notices a death."""
        if self.ready:
            self.outbox.put(message)
        else:
            self.unsent.append(message)

    def name(self) -> str:
        where = f"; its output is in {self.spec.log}" if self.spec.log else ""
        return f"worker {self.number} (process {self.process.pid}{where})"


class RolloutWorkerPool:
    """A `RolloutWorker` over processes. `stage` is called around waits; it may raise to end them (Ctrl-C)."""

    def __init__(self, config: TrainConfig, policy: Policy, folder: Path, version: int = 0, stage: Stage = untimed):
        """Starts the processes and waits until they are ready. `folder` takes the model's config and their logs."""
        self.config, self.policy_version, self.stage = config, version, stage
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
        self._workers = [self._start(number) for number in range(config.rollout.replicas)]
        atexit.register(self.close)
        try:
            self._wait(lambda: all(a.ready for a in self._workers), stop_signals.check)
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
            self._folder / f"worker_{number}.log", self._stop_ids,
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
        """Sends weights in a thread, because a transport may wait for the other side; waits for its answer have a
        limit."""
        threading.Thread(target=self._publisher.transmit, args=(source, version), daemon=True).start()

    def _restart(self, worker: _Worker, why: str) -> None:
        """Starts a process again with its episodes. Raises `EngineError` when it keeps ending."""
        _end(worker)
        worker.restarts += 1
        if worker.restarts > MAX_RESTARTS:
            raise EngineError(f"{worker.name()} {why}, {worker.restarts} times without an episode in between")
        console.say(f"{worker.name()} {why}: restarting it, {len(worker.playing)} episodes are played again")
        fresh = self._start(worker.number)
        fresh.restarts, fresh.playing = worker.restarts, worker.playing
        self._workers[worker.number] = fresh
        for request, temperature in fresh.playing.values():
            fresh.send(Play([request], temperature))

    # ---------------------------------------------------------------------------------------------- episodes

    def submit(self, requests: Sequence[EpisodeRequest], temperature: float | None = None) -> None:
        groups: dict[tuple[int, int], list[EpisodeRequest]] = {}
        for request in requests:
            groups.setdefault((request.episode_id.step, request.episode_id.group), []).append(request)
        for members in groups.values():  # a group stays together: its episodes share the start of their prompts
            worker = min(self._workers, key=lambda w: len(w.playing))
            if not worker.playing:
                worker.seen_s = time.monotonic()
            worker.playing |= {request.episode_id: (request, temperature) for request in members}
            worker.send(Play(members, temperature))

    def poll(self) -> list[Trajectory]:
        if not self._ended:
            with self.stage("wait"):
                self._receive(POLL_S)
                self._check()
        ended, self._ended = self._ended, []
        return ended

    def in_flight(self) -> InFlight:
        """As the processes have last reported, about once a second."""
        out: InFlight = {}
        for worker in self._workers:
            for step, (episodes, turns) in worker.in_flight.items():
                before = out.get(step, (0, 0))
                out[step] = before[0] + episodes, before[1] + turns
        return out

    def stop(self) -> None:
        for worker in self._workers:
            worker.in_flight = {}
            if worker.playing:
                # No message abandons an episode; what comes in later is dropped.
                worker.playing = {}
        self._ended = []

    def _receive(self, timeout_s: float) -> None:
        """Reads the processes' messages, waiting for the first one at most so long."""
        by_connection = {a.connection: a for a in self._workers}
        for connection in wait(list(by_connection), timeout_s):
            worker = by_connection[connection]
            with suppress(EOFError, ConnectionResetError, OSError):
                while worker.connection.poll():
                    self._handle(worker, worker.connection.recv())

    def _handle(self, worker: _Worker, message: Any) -> None:
        worker.seen_s = time.monotonic()
        if isinstance(message, Ready):
            worker.ready = True
            for waiting in worker.unsent:
                worker.send(waiting)
            worker.unsent.clear()
        elif isinstance(message, Ended):
            if worker.playing.pop(message.trajectory.episode_id, None) is not None:
                self._ended.append(message.trajectory)
                worker.restarts = 0
        elif isinstance(message, Synced):
            worker.version = message.version
        elif isinstance(message, Alive):
            self._spans.setdefault(f"worker {worker.number}", []).extend(message.spans)
            worker.in_flight = message.in_flight
            if message.waits:
                worker.waited_s = worker.seen_s
            if message.metrics:
                self._metrics.append(message.metrics)
        elif isinstance(message, Said):
            console.say(f"worker {worker.number}: {message.text}")
        elif isinstance(message, Failed):
            if message.mistake:
                raise UserError(message.message.removeprefix("UserError: "))
            console.say(f"{worker.name()}: {message.message}")

    def _check(self) -> None:
        """Restarts processes that have died or hang."""
        r, now = self.config.rollout, time.monotonic()
        for worker in list(self._workers):
            if not worker.process.is_alive():
                with suppress(EOFError, OSError):  # its last messages
                    while worker.connection.poll():
                        self._handle(worker, worker.connection.recv())
                self._restart(worker, f"has ended (exit status {worker.process.exitcode})")
            elif not worker.ready and now - worker.started_s > r.start_timeout_s:
                raise EngineError(f"waited {r.start_timeout_s:g} s for {worker.name()} to start")
            elif worker.ready and worker.playing and now - worker.seen_s > r.hang_timeout_s:
                self._restart(worker, f"has given no sign of life for {r.hang_timeout_s:g} s")

    def _wait(self, done: Callable[[], bool], check: Callable[[], None]) -> None:
        while not done():
            self._receive(POLL_S)
            self._check()
            check()

    # --------------------------------------------------------------------------------------------- weights

    def update_weights(self, version: int) -> None:
        """Sends the current weights to every process and waits until all use them; restarts one that hangs."""
        limit = self.config.rollout.sync_timeout_s
        # A process that is starting still reads the previous weights.
        self._wait(lambda: all(a.ready for a in self._workers), stop_signals.check)
        self._publisher.publish(version)
        self.policy_version = version
        for worker in self._workers:
            worker.send(LoadWeights(version))
            self._transmit(worker.spec.source, version)
        deadline = time.monotonic() + limit

        def in_time() -> None:
            stop_signals.check()
            now, patience = time.monotonic(), max(limit, self.config.rollout.hang_timeout_s)
            for worker in [a for a in self._workers if a.ready and a.version != version]:
                if now <= max(deadline, worker.waited_s + patience):
                    continue
                self._restart(
                    worker,
                    f"has not loaded the weights of version {version} in {limit:g} s (transport: {self.transport}; see "
                    "--rollout.sync-timeout-s)",
                )

        self._wait(lambda: all(a.version == version and a.ready for a in self._workers), in_time)

    def take_spans(self) -> dict[str, list[tuple[str, float, float]]]:
        taken, self._spans = self._spans, {}
        return taken

    def take_metrics(self) -> dict[str, float]:
        self._receive(0)
        taken, self._metrics = self._metrics, []
        return merged(taken)

    def close(self) -> None:
        for worker in self.__dict__.get("_workers", []):
            if worker.process.is_alive() and worker.ready:
                worker.send(Stop())
        for worker in self.__dict__.get("_workers", []):
            worker.process.join(5)
            _end(worker)


def _end(worker: _Worker) -> None:
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join(10)
    worker.outbox.put(None)
    worker.sender.join(10)  # what it is sending fails: no process is left to read it
    worker.connection.close()


def _publisher(config: TrainConfig, policy: Policy) -> tuple[Publisher, str]:
    r, kind = config.rollout, config.rollout.transport
    if kind == "auto":
        on_card = policy.device.type == "cuda" and r.engine == "vllm"
        # CUDA IPC shares tensors as they are, and adapters are merged for the engine.
        kind = ("nccl" if r.gpus else "shared" if config.lora.rank else "ipc") if on_card else "shared"
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
    """Cores of each process, taken from the end of this one's, which keeps the rest. Raises `UserError` for too
    many."""
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
    """Sets the variables that a new process must find in its environment before it imports anything."""

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
