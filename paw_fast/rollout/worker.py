"""Defines rollout workers, which play a step's episodes, and the one that plays them in this process.

`worker_pool` holds the other one, which plays them in processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from paw_fast.rollout.agent_loop import AgentLoop, InFlight
from paw_fast.rollout.timeouts import time_limit
from paw_fast.types import EpisodeRequest, Trajectory


class RolloutWorker(Protocol):
    """Plays episodes that are submitted at any time, and returns them as they end."""

    policy_version: int

    def submit(self, requests: Sequence[EpisodeRequest], temperature: float | None = None) -> None:
        """Queues episodes; `temperature` None is that of training."""
        ...

    def poll(self) -> list[Trajectory]:
        """Episodes that have ended since the last call; waits a moment (or plays a step) for one to end."""
        ...

    def stop(self) -> None:
        """Abandons every episode that is in flight or waits."""
        ...

    def in_flight(self) -> InFlight:
        """The episodes that are being played, as far as is known without waiting."""
        ...

    def update_weights(self, version: int) -> None:
        """Loads the policy's current weights, its `version`: every token after the call is sampled with them."""
        ...

    def take_spans(self) -> dict[str, list[tuple[str, float, float]]]:
        """(stage, start, end) since the last call for each other process, on the clock of `time.perf_counter`."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """What the environments have counted since the last call, by metric name."""
        ...

    def close(self) -> None:
        """Ends processes and frees memory. Safe to call twice."""
        ...


class LocalRolloutWorker:
    """The agent loop of this process. Raises `EngineError` for weights that are not loaded after `sync_timeout_s`."""

    def __init__(self, loop: AgentLoop, sync_timeout_s: float):
        self.loop, self.sync_timeout_s = loop, sync_timeout_s
        self.policy_version = 0

    def submit(self, requests: Sequence[EpisodeRequest], temperature: float | None = None) -> None:
        self.loop.add(requests, temperature)

    def poll(self) -> list[Trajectory]:
        return self.loop.step()

    def stop(self) -> None:
        self.loop.stop()

    def in_flight(self) -> InFlight:
        return self.loop.in_flight()

    def update_weights(self, version: int) -> None:
        what = f"the engine of this process to load the weights of version {version}"
        with time_limit(self.sync_timeout_s, what, "--rollout.sync-timeout-s"):
            self.loop.engine.update_weights(version)
        self.policy_version = version

    def take_spans(self) -> dict[str, list[tuple[str, float, float]]]:
        return {}

    def take_metrics(self) -> dict[str, float]:
        return self.loop.take_metrics()

    def close(self) -> None:
        self.loop.engine.close()


@dataclass
class EvalSession:
    """Plays an evaluation on a worker whose training episodes go on meanwhile; `kept` takes those that end.

    `play` is what `evaluate` needs of an agent loop.
    """

    worker: RolloutWorker
    temperature: float
    kept: list[Trajectory]
    polled: Callable[[Sequence[Trajectory]], None] = lambda ended: None
    """Called after each poll with the episodes of the evaluation that ended in it."""

    def play(self, requests: Sequence[EpisodeRequest]) -> Iterator[Trajectory]:
        """Each of the episodes as it ends."""
        waiting = {request.episode_id for request in requests}
        self.worker.submit(requests, self.temperature)
        try:
            while waiting:
                found = self.worker.poll()
                self.polled([t for t in found if t.episode_id in waiting])
                for trajectory in found:
                    if trajectory.episode_id in waiting:
                        waiting.remove(trajectory.episode_id)
                        yield trajectory
                    else:
                        self.kept.append(trajectory)
        except BaseException:
            self.worker.stop()
            raise
