"""Who plays a step's episodes: this process, or actors in processes of their own (`pool`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from paw_fast.rollout.agent_loop import AgentLoop, EpisodeRequest
from paw_fast.rollout.timeouts import time_limit
from paw_fast.types import Trajectory


class RolloutWorker(Protocol):
    """Plays episodes that are handed in at any time, and hands them back as they end."""

    policy_version: int

    def submit(self, episodes: Sequence[EpisodeRequest], temperature: float | None = None) -> None:
        """Plays these too; `temperature` None is the training's."""
        ...

    def poll(self) -> list[Trajectory]:
        """What has ended since the last call; waits a moment (or plays a step) for something to end."""
        ...

    def stop(self) -> None:
        """Leaves every episode that is under way or waits."""
        ...

    def update_weights(self, version: int) -> None:
        """The policy was updated: from here on tokens are sampled with its weights as they are now."""
        ...

    def take_spans(self) -> dict[str, list[tuple[str, float, float]]]:
        """Of each process but this one: (stage, start, end) since the last call, on `time.perf_counter`'s clock."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """What the episodes' environments have counted since the last call, under its metric names."""
        ...

    def close(self) -> None:
        """Gives back processes and memory. Safe to call twice."""
        ...


class LocalRolloutWorker:
    """The agent loop of this process. New weights that are not loaded after `sync_timeout_s` are an `EngineError`."""

    def __init__(self, loop: AgentLoop, sync_timeout_s: float = 120.0):
        self.loop, self.sync_timeout_s = loop, sync_timeout_s
        self.policy_version = 0

    def submit(self, episodes: Sequence[EpisodeRequest], temperature: float | None = None) -> None:
        self.loop.add(episodes, temperature)

    def poll(self) -> list[Trajectory]:
        return self.loop.step()

    def stop(self) -> None:
        self.loop.stop()

    def update_weights(self, version: int) -> None:
        what = f"the generator of this process to load the weights of version {version}"
        with time_limit(self.sync_timeout_s, what, "--rollout.sync-timeout-s"):
            self.loop.engine.update_weights(version)
        self.policy_version = version

    def take_spans(self) -> dict[str, list[tuple[str, float, float]]]:
        return {}

    def take_metrics(self) -> dict[str, float]:
        return self.loop.envs[0].take_metrics()  # its count is that of all slots

    def close(self) -> None:
        self.loop.engine.close()


@dataclass
class EvalSession:
    """Plays evaluations on a player whose other episodes go on meanwhile; their ends are kept for `poll`.

    `play` is what `evaluate` asks of an agent loop.
    """

    player: RolloutWorker
    temperature: float
    kept: list[Trajectory]

    def play(self, episodes: Sequence[EpisodeRequest]) -> Iterator[Trajectory]:
        """Each of the episodes as it ends."""
        waiting = {seed for _, _, seed in episodes}
        self.player.submit(episodes, self.temperature)
        try:
            while waiting:
                for trajectory in self.player.poll():
                    if trajectory.seed in waiting:
                        waiting.remove(trajectory.seed)
                        yield trajectory
                    else:
                        self.kept.append(trajectory)
        except BaseException:
            self.player.stop()
            raise
