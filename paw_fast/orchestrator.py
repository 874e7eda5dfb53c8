"""Schedules rollouts against updates: gives the training loop the groups of each step.

    sync     play all groups ────────────────> groups ──> update k ──> weights ──> play ...
    stream   play all groups ──> each group as it ends ──> update k ──> weights ──> play ...
    async    groups of steps k + 1 ... k + max_staleness are played meanwhile
             groups of step k as they end ──> update k ──> weights ──> groups of step k + 1 ...

`sync` and `stream` give the same updates bit for bit: token statistics are computed group by group in both. `async`
starts a step's episodes as soon as their tokens cannot become older than `max_staleness` updates; steps keep their
order, so that long episodes are not left behind by short ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from paw_fast.algorithms.base import has_reward_variance
from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.rollout.agent_loop import Stage, untimed
from paw_fast.rollout.task_sampler import TaskSampler
from paw_fast.rollout.worker import RolloutWorker
from paw_fast.types import EpisodeId, EpisodeRequest, Task, Trajectory

Group = list[Trajectory]
"""The episodes of one task, in order of their index."""
Polled = Callable[[Sequence[Trajectory]], None]
"""Called after each poll of the worker with the step's episodes that ended in it."""


def ignore(ended: Sequence[Trajectory]) -> None:
    """The `Polled` that does nothing."""


class Orchestrator(ABC):
    """Plays the episodes of each step; `make_orchestrator` gives the class of a config.

    say: called with lines for the user. stage: called around the parts; it may raise to interrupt them.
    """

    def __init__(
        self, config: TrainConfig, worker: RolloutWorker, sampler: TaskSampler, say: Callable[[str], None],
        stage: Stage = untimed,
    ):  # fmt: skip
        self.config, self.worker, self.sampler, self.stage, self.say = config, worker, sampler, stage, say
        self.kept: list[Trajectory] = []
        """Training episodes that ended while an evaluation was played: `EvalSession` puts them here."""
        self._overlong: set[str] = set()  # tasks whose first prompt does not fit
        self._metrics: dict[str, float] = {}

    @abstractmethod
    def next_batch(self, step: int, polled: Polled = ignore) -> Generator[Group, None, None]:
        """Gives the groups of step `step`, each once; `polled` is called while they are played.

        Close the generator when it is not exhausted (`contextlib.closing`). Raises `UserError` when no task's first
        prompt fits.
        """

    @abstractmethod
    def sampler_state(self) -> dict[str, int]:
        """The sampler's state before the first task that has not been learned from."""

    def take_metrics(self) -> dict[str, float]:
        """Metrics of the step whose groups were given last."""
        taken, self._metrics = self._metrics, {}
        return taken

    def _request(self, tasks: Sequence[Task], first: int, step: int) -> None:
        """Submits the episodes of the groups `first`, `first + 1`, ..., one for each task."""
        self.worker.submit(
            [
                EpisodeRequest(EpisodeId(step, group, i), task, (self.config.seed, step, group, i))
                for group, task in enumerate(tasks, first)
                for i in range(self.config.rollout.group_size)
            ]
        )

    def _poll(self) -> list[Trajectory]:
        kept, self.kept = self.kept, []
        return kept or self.worker.poll()

    def _is_overlong(self, group: Group) -> bool:
        """Whether the group's first prompt does not fit, in which case it is counted. Raises `UserError` when no
        task's does."""
        if all(t.transitions for t in group):
            return False
        task, r = group[0].task, self.config.rollout
        limits = (
            f"--rollout.max-sequence-tokens {r.max_sequence_tokens} with --rollout.max-action-tokens "
            f"{r.max_action_tokens}"
        )  # fmt: skip
        if not self._overlong:
            self.say(f"{task.task_id} is left out, and so are others like it: its first prompt does not fit {limits}")
        self._overlong.add(task.task_id)
        self._metrics["rollout/overlong_tasks"] = self._metrics.get("rollout/overlong_tasks", 0.0) + 1
        if len(self._overlong) >= len({t.task_id for t in self.sampler.tasks}):
            raise UserError(f"no training task's first prompt fits {limits} (the last one: {task.task_id})")
        return True


class StreamOrchestrator(Orchestrator):
    """Plays a step's groups with the weights of the step before, and gives each group when it ends."""

    def next_batch(self, step: int, polled: Polled = ignore) -> Generator[Group, None, None]:
        """A generator that is closed early, or whose episodes fail, leaves the sampler in its state of before."""
        self._metrics, state = {}, self.sampler.state()
        try:
            yield from self._rounds(step, polled)
        except BaseException:  # GeneratorExit, when it is closed, included
            self.worker.stop()
            self.sampler.restore(state)
            raise

    def sampler_state(self) -> dict[str, int]:
        return self.sampler.state()

    def _rounds(self, step: int, polled: Polled) -> Generator[Group, None, None]:
        """The groups of all rounds: one, or with dynamic sampling further ones in place of groups whose returns are
        equal."""
        r, a = self.config.rollout, self.config.algo
        rounds, varied, following = 0, 0, 0
        while varied < r.groups and (rounds == 0 or (a.dynamic_sampling and rounds < a.max_rounds)):
            count = r.groups - varied
            with self.stage("rollout"):
                for group in self._play(count, following, step, polled):
                    varied += bool(has_reward_variance(group)[0]) or not a.dynamic_sampling
                    following = max(following, group[0].group + 1)
                    yield group
            rounds += 1
        if a.dynamic_sampling:
            self._metrics["rollout/rounds"] = float(rounds)

    def _play(self, count: int, first: int, step: int, polled: Polled) -> Generator[Group, None, None]:
        """Plays `count` groups, numbered from `first`, and gives each when its last episode ends. Another task
        replaces one whose first prompt does not fit."""
        self._request(self.sampler.draw(count), first, step)
        open_groups: dict[int, Group] = {}
        following, left = first + count, count
        while left:
            ended = self._poll()
            polled([t for t in ended if t.transitions])
            for trajectory in ended:
                group = open_groups.setdefault(trajectory.group, [])
                group.append(trajectory)
                if len(group) < self.config.rollout.group_size:
                    continue
                if self._is_overlong(group):
                    self._request(self.sampler.draw(1), following, step)
                    following += 1
                    continue
                left -= 1
                yield _in_order(group)


class SyncOrchestrator(StreamOrchestrator):
    """As `StreamOrchestrator`, but gives the groups after all of them have ended."""

    def _rounds(self, step: int, polled: Polled) -> Generator[Group, None, None]:
        yield from sorted(super()._rounds(step, polled), key=lambda group: group[0].group)


@dataclass
class _OpenStep:
    """A step whose episodes are being played: the sampler's state before it, and the groups that are not complete or
    not yet given."""

    sampler_state: dict[str, int]
    num_groups: int
    groups: dict[int, Group] = field(default_factory=dict)
    dropped: int = 0


class AsyncOrchestrator(Orchestrator):
    """Plays the groups of later steps while those of a step are learned from; replaces groups that became too old."""

    def __init__(
        self, config: TrainConfig, worker: RolloutWorker, sampler: TaskSampler, say: Callable[[str], None],
        stage: Stage = untimed,
    ):  # fmt: skip
        super().__init__(config, worker, sampler, say, stage)
        self._open: dict[int, _OpenStep] = {}

    def next_batch(self, step: int, polled: Polled = ignore) -> Generator[Group, None, None]:
        """Episodes that have started go on when the generator is closed early; the step stays open, so that
        `sampler_state` counts its tasks as not learned from."""
        self._metrics = {}
        bound, wanted = self.config.pipeline.staleness_bound, self.config.rollout.groups
        for number in range(step, min(step + bound + 1, self.config.steps)):
            if number not in self._open:
                self._open[number] = _OpenStep(self.sampler.state(), wanted)
                self._request(self.sampler.draw(wanted), 0, number)
        now = self._open[step]
        polled([t for group in now.groups.values() for t in group if t.transitions])
        ages: list[np.ndarray] = []
        given = 0
        while given < wanted:
            for group in self._complete_groups(now):
                if self._is_overlong(group) or self._is_stale(group, step, now):
                    self._request(self.sampler.draw(1), now.num_groups, step)
                    now.num_groups += 1
                    continue
                given += 1
                ages += [step - np.array(x.policy_versions) for t in group for x in t.transitions]
                yield group
            if given < wanted:
                with self.stage("rollout"):
                    self._receive(step, polled)
        del self._open[step]
        age = np.concatenate(ages)
        self._metrics |= {
            "async/staleness_mean": float(age.mean()), "async/staleness_max": float(age.max()),
            "async/dropped_groups": float(now.dropped),
        }  # fmt: skip

    def sampler_state(self) -> dict[str, int]:
        return self._open[min(self._open)].sampler_state if self._open else self.sampler.state()

    def _complete_groups(self, now: _OpenStep) -> list[Group]:
        """Takes the groups whose episodes have all ended."""
        size = self.config.rollout.group_size
        complete = [number for number, group in now.groups.items() if len(group) == size]
        return [_in_order(now.groups.pop(number)) for number in complete]

    def _is_stale(self, group: Group, step: int, now: _OpenStep) -> bool:
        """Whether a token of the group is older than `max_staleness` updates; counts the group then."""
        stale = step - oldest_version(group) > self.config.pipeline.staleness_bound
        now.dropped += stale
        return stale

    def _receive(self, step: int, polled: Polled) -> None:
        """Sorts the episodes that have ended into the open steps."""
        ended = self._poll()
        for trajectory in ended:
            self._open[trajectory.episode_id.step].groups.setdefault(trajectory.group, []).append(trajectory)
        polled([t for t in ended if t.episode_id.step == step and t.transitions])


_CLASSES: dict[str, type[Orchestrator]] = {
    "auto": SyncOrchestrator,  # `planning.automatic` chooses when a run starts; elsewhere nothing overlaps
    "sync": SyncOrchestrator,
    "stream": StreamOrchestrator,
    "async": AsyncOrchestrator,
}


def make_orchestrator(
    config: TrainConfig, worker: RolloutWorker, sampler: TaskSampler, say: Callable[[str], None],
    stage: Stage = untimed,
) -> Orchestrator:  # fmt: skip
    """The orchestrator of `--pipeline`."""
    return _CLASSES[config.pipeline.name](config, worker, sampler, say, stage)


def oldest_version(trajectories: Sequence[Trajectory]) -> int:
    """The fewest updates of the weights that any token was sampled with."""
    return min(v for t in trajectories for x in t.transitions for v in x.policy_versions)


def _in_order(group: Group) -> Group:
    return sorted(group, key=lambda t: t.episode_id)
