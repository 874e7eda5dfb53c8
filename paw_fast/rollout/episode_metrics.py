"""Computes the metrics of a step's episodes: success, rewards, lengths, limits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from paw_fast.rollout.transcript import continued_share
from paw_fast.types import Trajectory


def episode_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over the episodes by metric name."""
    by_type = defaultdict(list)
    for t in trajectories:
        by_type[t.task.task_type].append(t.won)
    actions = [x for t in trajectories for x in t.transitions]
    mean = lambda values: float(np.mean(values)) if len(values) else 0.0  # noqa: E731
    return {
        "reward/mean": mean([t.episode_return for t in trajectories]),
        "reward/return_mean": mean([t.success_return for t in trajectories]),
        "reward/score_mean": mean([t.score for t in trajectories]),
        "success/rate": mean([t.won for t in trajectories]),
        "episode/length_mean": mean([len(t.transitions) for t in trajectories]),
        "episode/invalid_action_rate": mean([not x.valid for x in actions]),
        "episode/continued_transcript_rate": continued_share(trajectories),
        "episode/truncated_rate": mean([t.truncated for t in trajectories]),
        "episode/overrun_rate": mean([bool(t.overrun) for t in trajectories]),
        "episode/token_limit_rate": mean([t.no_room or t.overrun == "tokens" for t in trajectories]),
        "episode/cut_rate": sum(t.num_cut for t in trajectories) / max(1, len(actions)),
        **{f"success/{name}": mean(won) for name, won in sorted(by_type.items())},
        **{
            f"score/{name}": sum(t.scores.get(name, 0.0) for t in trajectories) / len(trajectories)
            for name in sorted({name for t in trajectories for name in t.scores})
        },
    }
