"""A process that plays episodes: agent loop, environments and generator together, away from the trainer.

    trainer ── play (episodes), weights (a version), stop ──> actor
    trainer <── ready, trajectories, synced, lines for the user, signs of life with what it was busy with ── actor

Orders are read between two steps of the generator, so new weights arrive in the middle of episodes. `main` is the
program of the process; `pool.RolloutWorkerPool` is the other side.
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
from paw_fast.rollout.agent_loop import AgentLoop, EpisodeRequest
from paw_fast.rollout.weight_sync import WeightSource
from paw_fast.runs import console, stop_signals
from paw_fast.types import Trajectory

SIGN_OF_LIFE_S = 1.0


@dataclass(frozen=True)
class WorkerSpec:
    """What an actor is made of. `folder` holds the model's config and tokenizer; gpus and cores are its own, empty
    for no say; `log` takes what it prints; `stop_ids` are the end tokens that the model declares.

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
    """Order: play these episodes too."""

    episodes: Sequence[EpisodeRequest]
    temperature: float | None


@dataclass(frozen=True)
class LoadWeights:
    """Order: the weights of this version are there to be read."""

    version: int


@dataclass(frozen=True)
class Stop:
    """Order: end."""


@dataclass(frozen=True)
class Ready:
    """Answer: the actor can play."""


@dataclass(frozen=True)
class Ended:
    """Answer: an episode is over."""

    trajectory: Trajectory


@dataclass(frozen=True)
class Synced:
    """Answer: the weights of this version are in use; loading took `seconds`."""

    version: int
    seconds: float


@dataclass(frozen=True)
class Alive:
    """A sign of life: `spans` (stage, start, end; seconds of the machine's monotonic clock) and the environment's
    `metrics` since the last one; `waits` while the environment waits for a server."""

    spans: tuple[tuple[str, float, float], ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    waits: bool = False


@dataclass(frozen=True)
class Said:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Failed:
    """Answer: the actor ends with this error; `mistake` says that it is the user's to mend."""

    message: str
    mistake: bool


@dataclass
class _Clock:
    """Collects spans of stages; the agent loop calls it as its `stage`. Nested stages keep their own spans."""

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
    """The process. Ends when it is told to, or when the trainer is gone."""
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
    """Sends what is put into the outbox until None is. A thread of each side runs it: one that is busy or hangs and
    does not read must not hold up the other."""
    while (message := outbox.get()) is not None:
        try:
            connection.send(message)
        except OSError:  # the other side is gone, or this one has closed
            return


def _serve(connection: Connection, outbox: queue.SimpleQueue, spec: WorkerSpec) -> None:
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    clock = _Clock()
    last = time.monotonic()

    def show_life(waits: bool = False) -> None:
        nonlocal last
        outbox.put(Alive(clock.take(), env.take_metrics(), waits))
        last = time.monotonic()

    def while_waiting() -> None:
        """An environment waits for something (a server that is down)."""
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise EOFError
        if time.monotonic() - last > SIGN_OF_LIFE_S:
            show_life(waits=True)

    loop, env, close = _build(spec)
    loop.stage = clock
    env.while_waiting(while_waiting)
    outbox.put(Ready())
    try:
        while True:
            while connection.poll(0 if loop.busy else None):
                order = connection.recv()
                if isinstance(order, Stop):
                    return
                if isinstance(order, Play):
                    loop.add(order.episodes, order.temperature)
                if isinstance(order, LoadWeights):
                    with clock("sync"):
                        start = time.perf_counter()
                        loop.engine.update_weights(order.version)
                    outbox.put(Synced(order.version, time.perf_counter() - start))
            ended = loop.step()
            if time.monotonic() - last > SIGN_OF_LIFE_S or not loop.busy:
                show_life()  # before the last episode's end, so that what it counted is there when its step ends
            for trajectory in ended:
                outbox.put(Ended(trajectory))
    finally:
        close()


def _build(spec: WorkerSpec) -> tuple[AgentLoop, Env, Callable[[], None]]:
    """The loop, the environment, and what closes it and the engine."""
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

    return factory.make_loop(tokenizer, model_config, engine, env, spec.config), env, close
