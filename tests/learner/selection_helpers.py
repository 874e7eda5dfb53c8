"""Random episodes and learners of a small model, for tests of the world-model selection."""

import dataclasses

import numpy as np
import torch

from paw_fast.config import load_preset
from paw_fast.learner import Learner
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

VOCAB = 80


def episodes(count=8, seed=0, layout="window"):
    """Four to a group, of 1 to 4 turns; every other one is won."""
    rng = np.random.default_rng(seed)
    draw = lambda low, high: tuple(int(i) for i in rng.integers(5, VOCAB, rng.integers(low, high)))  # noqa: E731
    out = []
    for number in range(count):
        prompt, turns, length = draw(3, 8), [], int(rng.integers(1, 5))
        for turn in range(length):
            action, observed = draw(1, 5), draw(2, 7) if turn + 1 < length else ()
            mask = (True,) * len(observed)
            turns.append(Transition(prompt, action, (-1.0,) * len(action), observed, mask, "c", "o", "s", 0.0, True))
            prompt = prompt + action + observed if layout == "trajectory" else draw(3, 8)
        total = 10.0 * (number % 2 == 0)
        out.append(Trajectory(Task("t"), EpisodeId(0, number // 4, number % 4), tuple(turns), total, total, total > 0))
    return out


def make_learner(minibatches=1, layout="window", **paw):
    torch.manual_seed(0)
    policy = Policy(tiny.build_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, seed=2), None)
    base = load_preset("tiny")
    config = dataclasses.replace(
        base, layout=layout, paw=dataclasses.replace(base.paw, alpha=0.5, **paw),
        algo=dataclasses.replace(base.algo, minibatches=minibatches),
    )  # fmt: skip
    return Learner(policy, None, config)
