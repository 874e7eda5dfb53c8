"""Measures the success rate: plays tasks once each and counts successes, overall and for each task type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paw_fast.envs.base import Env
from paw_fast.errors import UserError
from paw_fast.evaluation.task_overlap import tasks_in_train
from paw_fast.evaluation.world_model import WorldModelQuality
from paw_fast.rollout.agent_loop import AgentLoop
from paw_fast.rollout.transcript import continued_share
from paw_fast.rollout.worker import EvalSession
from paw_fast.runs import console
from paw_fast.runs.statistics import wilson_interval
from paw_fast.types import EVALUATION, EpisodeId, EpisodeRequest, Task, Trajectory

EVAL_SEED = 20_000
"""Part of the seeds of evaluations, so that they never change what training samples."""


@dataclass(frozen=True)
class EvalResult:
    """Success over tasks that were played once each. Produced by `evaluate`.

    successes, num_tasks  tasks that were won, tasks that were played
    by_type               the same for each task type
    mean_length           actions in an episode
    mean_score            the environment's own score; `mean_scores` has its further ones by name
    num_overlong          tasks that count as lost because their first prompt does not fit
    won                   1 or 0 for each task, in their order
    outcomes              what became of each task, in their order
    continued             share of the actions that continue the transcript, see `rollout.transcript`
    text_loss             loss on text that is of no environment, nats per token, where it was measured with the result
    world_model           how well next observations are predicted, where it was measured with the result

    >>> EvalResult(1, 2, {"look": (1, 1), "place": (0, 1)}, 7.5).success
    0.5
    """

    successes: int
    num_tasks: int
    by_type: dict[str, tuple[int, int]]
    mean_length: float
    mean_score: float = 0.0
    mean_scores: dict[str, float] = field(default_factory=dict)
    num_overlong: int = 0
    won: tuple[int, ...] = ()
    outcomes: tuple[dict[str, Any], ...] = ()
    continued: float = 0.0
    text_loss: float | None = None
    world_model: WorldModelQuality | None = None

    @property
    def success(self) -> float:
        """Share of tasks that were won."""
        return self.successes / self.num_tasks

    def as_json(self) -> dict:
        """With 95 % Wilson intervals, overall and for each task type."""
        low, high = wilson_interval(self.successes, self.num_tasks)
        types = {}
        for name, (won, total) in sorted(self.by_type.items()):
            a, b = wilson_interval(won, total)
            types[name] = {"success": won / total, "low": a, "high": b, "successes": won, "num_tasks": total}
        return {
            "success": self.success, "low": low, "high": high, "successes": self.successes,
            "num_tasks": self.num_tasks, "mean_episode_length": self.mean_length, "mean_score": self.mean_score,
            "mean_scores": self.mean_scores, "overlong_tasks": self.num_overlong, "by_task_type": types,
            "continued_transcript_rate": self.continued, "text_loss": self.text_loss,
        }  # fmt: skip


def overlong_warning(result: EvalResult) -> str | None:
    """One line about tasks that count as lost because their first prompt does not fit; None where there are none."""
    if not result.num_overlong:
        return None
    return (
        f"{result.num_overlong} of {result.num_tasks} evaluation tasks count as lost: their first prompt does not fit "
        "--rollout.max-sequence-tokens"
    )


def eval_tasks(tasks: Sequence[Task], count: int) -> list[Task]:
    """`count` tasks of a split, drawn at random but the same in every run. Raises `UserError` for an empty split."""
    if not tasks:
        raise UserError("there are no tasks to evaluate on: check --split and the data")
    order = np.random.default_rng(EVAL_SEED).permutation(len(tasks))
    return [tasks[int(i)] for i in order[:count]]


def describe_tasks(count: int, split: str, in_train: int | None = None) -> str:
    """The evaluation tasks in words: their number and split, and how many of them are training tasks too.

    >>> describe_tasks(100, "eval", 99)
    '100 eval tasks (99 of them training tasks)'
    """
    shared = f" ({in_train} of them training tasks)" if in_train and split != "train" else ""
    return f"{count} {split} tasks{shared}"


def check_held_out(env: Env, tasks: Sequence[Task], split: str) -> int:
    """Number of evaluation tasks that are training tasks too; warns when it is some of them.

    Raises `UserError` when it is all of them, unless the split is `train`.
    """
    shared = tasks_in_train(env, tasks, split)
    if split != "train" and shared == len(tasks):
        raise UserError(
            f"all {shared} evaluation tasks of the split {split!r} are training tasks too: choose another --eval-split "
            "(or, for search, other --env.eval files); --eval-split train evaluates on training tasks on purpose"
        )
    if split != "train" and shared:
        console.say(
            f"warning: {shared} of the {len(tasks)} evaluation tasks of the split {split!r} are training tasks too: "
            "success on them says nothing of unseen tasks"
        )
    return shared


def evaluate(
    loop: AgentLoop | EvalSession,
    tasks: Sequence[Task],
    seed: int = 0,
    done: Callable[[Trajectory], None] = lambda t: None,
) -> EvalResult:
    """Plays every task once with the loop's settings; `done` is called with each trajectory as it ends.

    Warns of tasks that count as lost because their first prompt does not fit.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    steps, overlong, score = 0, 0, 0.0
    scores: dict[str, float] = defaultdict(float)
    ended: dict[int, Trajectory] = {}
    requests = [EpisodeRequest(EpisodeId(EVALUATION, i, 0), task, (seed, EVAL_SEED, i)) for i, task in enumerate(tasks)]
    for trajectory in loop.play(requests):
        count = counts[trajectory.task.task_type]
        count[0] += trajectory.won
        ended[trajectory.episode_id.group] = trajectory
        count[1] += 1
        steps += len(trajectory.transitions)
        overlong += not trajectory.transitions
        score += trajectory.score
        for name, value in trajectory.scores.items():
            scores[name] += value / len(tasks)
        done(trajectory)
    by_type = {name: (won, total) for name, (won, total) in counts.items()}
    played = [ended[number] for number in sorted(ended)]
    result = EvalResult(
        sum(w for w, _ in by_type.values()), len(tasks), by_type, steps / len(tasks), score / len(tasks), dict(scores),
        overlong, tuple(int(t.won) for t in played), tuple(map(_outcome, played)), continued_share(played),
    )  # fmt: skip
    if warning := overlong_warning(result):
        console.say(warning)
    return result


def _outcome(trajectory: Trajectory) -> dict[str, Any]:
    """What became of a task, for the JSON of an evaluation."""
    task = trajectory.task
    return {
        "id": task.task_id, "type": task.task_type, "won": trajectory.won, "score": trajectory.score,
        "actions": len(trajectory.transitions),
    }  # fmt: skip


def eval_metrics(
    result: EvalResult, quality: WorldModelQuality | None, before: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """An evaluation's values by metric name. before: `as_json` of the evaluation before training, for what grew."""
    effects = {"episode/eval_continued_transcript_rate": result.continued}
    if before and "continued_transcript_rate" in before:
        effects["episode/eval_continued_transcript_growth"] = result.continued - before["continued_transcript_rate"]
    if result.text_loss is not None:
        effects["text/eval_loss"] = result.text_loss
        if before and before.get("text_loss") is not None:
            effects["text/eval_loss_growth"] = result.text_loss - before["text_loss"]
    rates = {f"success/eval_{name}": won / total for name, (won, total) in result.by_type.items()}
    return {
        "success/eval_rate": result.success, "success/eval_total": float(result.num_tasks),
        "reward/eval_score_mean": result.mean_score, **rates, **(quality.metrics() if quality else {}),
        **{f"score/eval_{name}": value for name, value in result.mean_scores.items()}, **effects,
    }  # fmt: skip
