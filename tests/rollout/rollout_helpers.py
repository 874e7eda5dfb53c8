"""Plays episodes on a worker for the tests in this folder, and checks their log-probs."""

import copy
import time

import pytest
import torch
from make_records import request_for


def plan(env, seed=0, groups=2):
    """Two episodes of each of the first training tasks."""
    tasks = enumerate(env.tasks("train")[:groups])
    return [request_for(task, g, i, seed=(seed, g, i)) for g, task in tasks for i in range(2)]


def in_order(trajectories):
    return sorted(trajectories, key=lambda t: t.episode_id)


def finish(worker, count, limit_s=120):
    """The next `count` episodes that end, in order of their ids."""
    ended, deadline = [], time.monotonic() + limit_s
    while len(ended) < count:
        assert time.monotonic() < deadline
        ended += worker.poll()
    return in_order(ended)


def shown(trajectories):
    return [
        (t.episode_id, [(x.action_ids, x.command, x.observation_text) for x in t.transitions]) for t in trajectories
    ]


def check_logprobs(policy, trajectories, version):
    """Every token's log-prob is that of the policy as it is now, by a plain pass, and stamped with the version."""
    plain = copy.deepcopy(policy.model)
    plain.set_attn_implementation("eager")
    for x in (x for t in trajectories for x in t.transitions):
        with torch.no_grad():
            rows = torch.log_softmax(plain(torch.tensor([x.prompt_ids + x.action_ids])).logits[0], -1)
        expected = rows[len(x.prompt_ids) - 1 : -1].gather(1, torch.tensor(x.action_ids)[:, None])[:, 0]
        assert x.rollout_logprobs == pytest.approx(expected.tolist(), abs=2e-4)
        assert set(x.policy_versions) == {version}
