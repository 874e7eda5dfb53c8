"""Runs a worker process: agent loop, environments and engine together, apart from the trainer.

    trainer ── Play (requests), LoadWeights (a version), Stop ──────────────> worker process
    trainer <── Ready, Ended (a trajectory), Synced, Said, Alive, Failed ──── worker process

Messages are read between two steps of the engine, so new weights arrive in the middle of episodes. `main` is the
program of the process; `worker_pool.RolloutWorkerPool` is the other side.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from paw_fast.config import TrainConfig
from paw_fast.envs.base import Env
from paw_fast.errors import UserError
from paw_fast.rollout.agent_loop import AgentLoop, InFlight, Stage
from paw_fast.rollout.weight_sync import WeightSource
from paw_fast.runs import console, stop_signals
from paw_fast.types import EpisodeRequest, Trajectory

SIGN_OF_LIFE_S = 1.0


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker process is made of.

    folder        holds the model's config and tokenizer
    source        where it reads weights from; `version` is that of the first ones, `dtype` their type
    gpus, cores   devices and CPU cores of its own; empty: those it inherits
    memory_share  share of a GPU's memory for vLLM; None is vLLM's default
    log           file that takes its output
    stop_ids      end tokens that the model declares

    Produced by the pool, consumed by `main` in the new process.
    """

    config: TrainConfig
    folder: Path
    source: WeightSource
    version: int
    dtype: str
    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    memory_share: float | None = None
    log: Path | None = None
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Play:
    """Message to a worker: play these episodes too."""

    requests: Sequence[EpisodeRequest]
    temperature: float | None


@dataclass(frozen=True)
class LoadWeights:
    """Message to a worker: the weights of this version can be loaded."""

    version: int


@dataclass(frozen=True)
class Stop:
    """Message to a worker: end."""


@dataclass(frozen=True)
class Ready:
    """Message from a worker: it can play."""


@dataclass(frozen=True)
class Ended:
    """Message from a worker: an episode has ended."""

    trajectory: Trajectory


@dataclass(frozen=True)
class Synced:
    """Message from a worker: the weights of this version are in use; loading took `seconds`."""

    version: int
    seconds: float


@dataclass(frozen=True)
class Alive:
    """Message from a worker: it runs. `spans` (stage, start, end; seconds of the machine's monotonic clock) and the
    environment's `metrics` are those since the last one; `waits`: the environment waits for a server; `in_flight`: see
    `AgentLoop.in_flight`."""

    spans: tuple[tuple[str, float, float], ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    waits: bool = False
    in_flight: InFlight = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """Message from a worker: a line for the user."""

    text: str


@dataclass(frozen=True)
class Failed:
    """Message from a worker: it ends with this error; `mistake`: one that the user can fix (`UserError`)."""

    message: str
    mistake: bool


@dataclass
class _Clock:
    """Collects the spans of stages: the agent loop's `stage`. Nested stages keep their own spans."""

    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def __call__(self, name: str) -> _Stage:
        return _Stage(self, name)

    def take(self) -> tuple[tuple[str, float, float], ...]:
        taken, self.spans = tuple(self.spans), []
        return taken


class _Stage:
    def __init__(self, clock: _Clock, name: str):
        self.clock, self.name = clock, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        spans, now = self.clock.spans, time.perf_counter()
        if spans and spans[-1][0] == self.name and self.start - spans[-1][2] < 2e-4:
            spans[-1] = (self.name, spans[-1][1], now)  # one span for a run of the same stage
        else:
            spans.append((self.name, self.start, now))


def main(connection: Connection, spec: WorkerSpec) -> None:
    """Runs the process until it is told to stop, or until the trainer is gone."""
    stop_signals.ignore_in_child()
    if spec.log is not None:
        log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log, 1)
        os.dup2(log, 2)
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sender = threading.Thread(target=send_all, args=(connection, outbox), daemon=True)
    sender.start()
    console.redirect(lambda text: outbox.put(Said(text)))
    try:
        _serve(connection, outbox, spec)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the trainer is gone
    except BaseException as error:
        traceback.print_exc()
        outbox.put(Failed(f"{type(error).__name__}: {error}", isinstance(error, UserError)))
    outbox.put(None)
    sender.join(10)


def send_all(connection: Connection, outbox: queue.SimpleQueue) -> None:
    """Sends what is put into the outbox, until None is. Runs in a thread on both sides: one side that is busy or hangs
    and does not read must not hold up the other."""
    while (message := outbox.get()) is not None:
        try:
            connection.send(message)
        except OSError:  # the connection is closed
            return


def _serve(connection: Connection, outbox: queue.SimpleQueue, spec: WorkerSpec) -> None:
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    clock = _Clock()
    last = time.monotonic()

    def show_life(waits: bool = False) -> None:
        nonlocal last
        outbox.put(Alive(clock.take(), loop.take_metrics(), waits, loop.in_flight()))
        last = time.monotonic()

    def while_waiting() -> None:
        """An environment waits for something (a server that is down)."""
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise EOFError
        if time.monotonic() - last > SIGN_OF_LIFE_S:
            show_life(waits=True)

    loop, env, close = _build(spec, clock)
    env.while_waiting(while_waiting)
    outbox.put(Ready())
    try:
        while True:
            while connection.poll(0 if loop.busy else None):
                message = connection.recv()
                if isinstance(message, Stop):
                    return
                if isinstance(message, Play):
                    loop.add(message.requests, message.temperature)
                if isinstance(message, LoadWeights):
                    with clock("sync"):
                        start = time.perf_counter()
                        loop.engine.update_weights(message.version)
                    outbox.put(Synced(message.version, time.perf_counter() - start))
            ended = loop.step()
            if time.monotonic() - last > SIGN_OF_LIFE_S or not loop.busy:
                show_life()  # before the last trajectory, so that its counts are there when the step ends
            for trajectory in ended:
                outbox.put(Ended(trajectory))
    finally:
        close()


def _build(spec: WorkerSpec, stage: Stage) -> tuple[AgentLoop, Env, Callable[[], None]]:
    """The loop, the environment, and a function that closes both it and the engine."""
    import torch
    import transformers

    from paw_fast.rollout import factory
    from paw_fast.rollout.chat_format import ChatFormat

    if spec.cores:
        torch.set_num_threads(len(spec.cores))
    env = factory.make_env(spec.config.env)
    trust = spec.config.model.trust_remote_code
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec.folder, trust_remote_code=trust)
    model_config = transformers.AutoConfig.from_pretrained(spec.folder, trust_remote_code=trust)
    chat = ChatFormat(tokenizer, spec.stop_ids, spec.config.rollout.chat_date)
    if spec.config.rollout.engine == "vllm":
        engine = factory.vllm_engine(
            spec.folder, chat, spec.source, spec.config, dtype=spec.dtype,
            memory_share=spec.memory_share, version=spec.version,
        )  # fmt: skip
    else:
        engine = factory.empty_transformers_engine(model_config, chat, spec.source, spec.config, spec.dtype)
        engine.update_weights(spec.version)
        engine.check()

    def close() -> None:
        engine.close()
        env.close()

    return factory.make_loop(tokenizer, model_config, engine, env, spec.config, stage), env, close
