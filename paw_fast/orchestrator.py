"""How a step's rollouts, scores and updates lie in time.

    sync     play all groups ──────> score all ──> update k ──> sync ──> play ...
    stream   play all groups ──────> update k ──> sync ──> play ...
                score each as it ends
    async    play groups of k+1 (begun with the weights of step k) ... of k+2 ...
             score k ──> update k ──> sync ──> score k+1 ──> update k+1 ...

`sync` and `stream` give the same updates bit for bit: groups are scored one by one in both. `async` lets a batch
begin as soon as its tokens cannot get older than `max_staleness` updates; batches keep their order, so that long
episodes are not left behind by short ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np

from paw_fast.algorithms.base import has_reward_variance
from paw_fast.algorithms.off_policy import check_gap, gap_metrics, sampled_logprobs, truncated_importance
from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.learner import Learner
from paw_fast.learner.sequences import build_sequences
from paw_fast.rollout.agent_loop import EpisodeRequest
from paw_fast.rollout.factory import max_length
from paw_fast.rollout.task_sampler import TaskSampler
from paw_fast.rollout.worker import RolloutWorker
from paw_fast.types import Task, TokenSequence, TokenStats, Trajectory

Stage = Callable[[str], AbstractContextManager]


@dataclass(frozen=True)
class Batch:
    """What a step learns from, group after group. Produced by `Orchestrator`, consumed by the update."""

    trajectories: list[Trajectory]
    sequences: list[TokenSequence]
    scores: TokenStats
    metrics: dict[str, float]


@dataclass
class _Open:
    """A batch of `async` that is being played: what the sampler was before it, and what has ended."""

    sampler_state: dict[str, int]
    groups: int
    ended: dict[int, list[Trajectory]] = field(default_factory=dict)
    dropped: int = 0
    replaced: int = 0


class Orchestrator:
    """Gives the batch of each step. `stage` times the parts, and may raise to interrupt them."""

    def __init__(
        self, config: TrainConfig, player: RolloutWorker, sampler: TaskSampler, learner: Learner, stage: Stage,
        warn: Callable[[str], None],
    ):  # fmt: skip
        self.config, self.player, self.sampler, self.learner = config, player, sampler, learner
        self.stage, self.warn = stage, warn
        self.kept: list[Trajectory] = []  # ended while an evaluation was waiting for others
        self._open: dict[int, _Open] = {}
        self._overlong: set[str] = set()  # tasks whose first prompt does not fit
        self._left_out = 0  # of the step that is played

    def batch(self, step: int, advance: Callable[[], None]) -> Batch:
        """Plays (or goes on playing) and scores the batch of a step; `advance` is called for each of its episodes.

        When it is interrupted the sampler stands where it stood before. Raises `UserError` when generator and
        trainer disagree (`mismatch.check_gap`).
        """
        self._left_out = 0
        if self.config.pipeline.name == "async":
            groups, parts, metrics = self._async(step, advance)
        else:
            state = self.sampler.state()
            try:
                groups, parts, metrics = self._on_policy(step, advance)
            except BaseException:
                self.player.stop()
                self.sampler.restore(state)
                raise
        if self._left_out:
            metrics["rollout/overlong_tasks"] = float(self._left_out)
        order = sorted(groups)
        trajectories = [t for number in order for t in groups[number]]
        scores = TokenStats.join([parts[number] for number in order])
        sampled = sampled_logprobs(trajectories)
        metrics |= gap_metrics(sampled, scores.old_logprobs)
        if warning := check_gap(metrics, self.config.pipeline, step):
            self.warn(warning)
        if self.config.pipeline.name == "async":
            cap = self.config.pipeline.importance_cap
            weights = truncated_importance(sampled, scores.old_logprobs, cap)
            scores = replace(scores, importance=weights)
            flat = np.concatenate(weights)
            metrics |= {
                "async/importance_mean": float(flat.mean()),
                "async/importance_capped_share": float((flat >= np.float32(cap)).mean()),
            }
        sequences = self._sequences(trajectories)
        return Batch(trajectories, sequences, scores, metrics)

    def sampler_state(self) -> dict[str, int]:
        """Where the sampler stood before the first task that has not been learned from."""
        return self._open[min(self._open)].sampler_state if self._open else self.sampler.state()

    def _sequences(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        c = self.config
        return build_sequences(
            trajectories, c.layout, c.paw.horizon, max_length(self.learner.policy.model.config, c)
        )  # fmt: skip

    def _score(self, group: Sequence[Trajectory]) -> TokenStats:
        with self.stage("score"):
            return self.learner.compute_token_stats(self._sequences(group))

    def _is_overlong(self, group: Sequence[Trajectory]) -> bool:
        """Whether the group's first prompt did not fit; counts it then. Raises `UserError` where no task's does."""
        if all(t.transitions for t in group):
            return False
        task, r = group[0].task, self.config.rollout
        limits = (
            f"--rollout.max-sequence-tokens {r.max_sequence_tokens} with --rollout.max-action-tokens "
            f"{r.max_action_tokens}"
        )  # fmt: skip
        if not self._overlong:
            self.warn(f"{task.task_id} is left out, and so are others like it: its first prompt does not fit {limits}")
        self._overlong.add(task.task_id)
        self._left_out += 1
        if len(self._overlong) >= len({t.task_id for t in self.sampler.tasks}):
            raise UserError(f"no training task's first prompt fits {limits} (the last one: {task.task_id})")
        return True

    def _plan(self, tasks: Sequence[Task], first: int, step: int) -> list[EpisodeRequest]:
        """The episodes of the groups `first`, `first + 1`, ..."""
        return [
            (task, group, (self.config.seed, step, group, i))
            for group, task in enumerate(tasks, first)
            for i in range(self.config.rollout.group_size)
        ]

    def _poll(self) -> list[Trajectory]:
        kept, self.kept = self.kept, []
        return kept or self.player.poll()

    # ------------------------------------------------------------------------------------------ sync and stream

    def _on_policy(self, step: int, advance: Callable[[], None]):
        """Groups, their scores and metrics. With dynamic sampling, groups whose episodes all had the same return are
        followed by others in their place."""
        r, a = self.config.rollout, self.config.algo
        groups: dict[int, list[Trajectory]] = {}
        parts: dict[int, TokenStats] = {}
        rounds, missing = 0, r.groups
        while missing > 0 and (rounds == 0 or (a.dynamic_sampling and rounds < a.max_rounds)):
            with self.stage("rollout"):
                for number, members in self._groups(missing, max(groups, default=-1) + 1, step, advance):
                    groups[number] = members
                    if self.config.pipeline.name == "stream":
                        parts[number] = self._score(members)
            rounds += 1
            played = [t for members in groups.values() for t in members]
            missing = r.groups - int(has_reward_variance(played).sum()) // r.group_size if a.dynamic_sampling else 0
        for number in sorted(groups.keys() - parts.keys()):
            parts[number] = self._score(groups[number])
        return groups, parts, {"rollout/rounds": float(rounds)} if a.dynamic_sampling else {}

    def _groups(
        self, count: int, first: int, step: int, advance: Callable[[], None]
    ) -> Iterator[tuple[int, list[Trajectory]]]:
        """Plays `count` groups, `first` the number of the first, and gives each when its last episode ends. Another
        task takes the place of one whose first prompt does not fit."""
        self.player.submit(self._plan(self.sampler.draw(count), first, step))
        ended: dict[int, list[Trajectory]] = {}
        following, left = first + count, count
        while left:
            for trajectory in self._poll():
                if trajectory.transitions:
                    advance()
                members = ended.setdefault(trajectory.group, [])
                members.append(trajectory)
                if len(members) < self.config.rollout.group_size:
                    continue
                if self._is_overlong(members):
                    self.player.submit(self._plan(self.sampler.draw(1), following, step))
                    following += 1
                    continue
                left -= 1
                yield trajectory.group, sorted(members, key=lambda t: t.seed)

    # ---------------------------------------------------------------------------------------------------- async

    def _async(self, step: int, advance: Callable[[], None]):
        """Groups of the step's batch, their scores and metrics; batches that may begin are begun."""
        bound, size = self.config.pipeline.max_staleness, self.config.rollout.group_size
        for number in range(step, min(step + bound + 1, self.config.steps)):
            if number not in self._open:
                self._begin(number)
        now = self._open[step]
        groups: dict[int, list[Trajectory]] = {}
        parts: dict[int, TokenStats] = {}
        for _ in range(sum(bool(t.transitions) for members in now.ended.values() for t in members)):
            advance()
        while len(groups) < now.groups:
            for group in [g for g, members in now.ended.items() if len(members) == size]:
                members = sorted(now.ended.pop(group), key=lambda t: t.seed)
                if self._is_overlong(members):
                    self._replace(step, now)
                    continue
                if step - oldest_version(members) > bound:
                    now.dropped += 1
                    self._replace(step, now)
                    continue
                groups[group] = members
                parts[group] = self._score(members)
            if len(groups) < now.groups:
                with self.stage("rollout"):
                    for trajectory in self._poll():
                        batch = trajectory.seed[1]
                        self._open[batch].ended.setdefault(trajectory.group, []).append(trajectory)
                        if batch == step and trajectory.transitions:
                            advance()
        del self._open[step]
        played = [x for members in groups.values() for t in members for x in t.transitions]
        age = np.concatenate([step - np.array(x.policy_versions) for x in played])
        metrics = {
            "async/staleness_mean": float(age.mean()), "async/staleness_max": float(age.max()),
            "async/dropped_groups": float(now.dropped),
        }  # fmt: skip
        return groups, parts, metrics

    def _begin(self, number: int) -> None:
        self._open[number] = _Open(self.sampler.state(), self.config.rollout.groups)
        self.player.submit(self._plan(self.sampler.draw(self.config.rollout.groups), 0, number))

    def _replace(self, step: int, batch: _Open) -> None:
        """Plays another task in place of a group that has become too old, or whose first prompt does not fit."""
        first = batch.groups + batch.replaced
        batch.replaced += 1
        self.player.submit(self._plan(self.sampler.draw(1), first, step))


def oldest_version(trajectories: Sequence[Trajectory]) -> int:
    """The fewest updates that the weights had seen which any of the tokens was sampled with."""
    return min(v for t in trajectories for x in t.transitions for v in x.policy_versions)
