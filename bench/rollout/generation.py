"""Measures the time of rollouts with PaW on and off, on the same episodes of the `tiny` preset.

    python bench/rollout/generation.py

The configs of agent loop, prompts and engine differ only in `paw.enabled`; runs with PaW off and on alternate. Prints
medians of the CPU seconds of this process on one thread, and the median difference between consecutive off runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import statistics
import tempfile
import time

import torch

from paw_fast.config import TrainConfig, load_preset
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.rollout.factory import make_engine, make_env, make_loop
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.types import EpisodeId, EpisodeRequest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7, help="rollouts with PaW on, each between two with it off")
    args = parser.parse_args()
    os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp(prefix="paw-fast-"))
    torch.set_num_threads(1)
    base, replace = load_preset("tiny", "alfworld"), dataclasses.replace
    base = replace(base, env=replace(base.env, num_train=50, num_unseen=4))
    env = make_env(base.env)
    tasks = env.tasks("train")[: args.groups]
    template = PromptTemplate.load(base.env.template, base.env.name)
    tokenizer = tiny.train_tokenizer([template.first(env.reset(task)) for task in tasks])
    policy = Policy(tiny.build_model(len(tokenizer)).eval(), tokenizer)
    plan = [
        EpisodeRequest(EpisodeId(0, g, i), task, (0, g, i))
        for g, task in enumerate(tasks)
        for i in range(base.rollout.group_size)
    ]
    times: list[list[float]] = [[], []]
    tokens: set[int] = set()

    def play(config: TrainConfig) -> float:
        loop = make_loop(tokenizer, policy.model.config, make_engine(policy, config), env, config)
        start = time.process_time()
        tokens.add(sum(len(x.action_ids) for t in loop.play(plan) for x in t.transitions))
        return time.process_time() - start

    configs = [replace(base, paw=replace(base.paw, enabled=enabled)) for enabled in (False, True)]
    play(configs[0])
    for turn in range(2 * args.repeats + 1):
        times[turn % 2].append(play(configs[turn % 2]))
    off, on = times
    ratios = [x / ((a + b) / 2) - 1 for a, x, b in zip(off, on, off[1:], strict=False)]
    noise = [abs(b / a - 1) for a, b in itertools.pairwise(off)]
    print(f"sampled tokens of each rollout: {sorted(tokens)}")
    print(
        f"off {statistics.median(off):.2f} s, on {statistics.median(on):.2f} s: {statistics.median(ratios):+.2%} "
        f"({min(ratios):+.1%} to {max(ratios):+.1%}); from one off to the next {statistics.median(noise):.1%}"
    )


if __name__ == "__main__":
    main()
