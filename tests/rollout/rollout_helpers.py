"""Episodes on a player, for the tests beside this file: what is played, what came out, whether its log-probs hold."""

import copy
import time

import pytest
import torch


def plan(env, seed=0, groups=2):
    """Two episodes of each of the first training tasks."""
    return [(task, g, (seed, g, i)) for g, task in enumerate(env.tasks("train")[:groups]) for i in range(2)]


def finish(player, count, limit_s=120):
    """The next `count` episodes that end, in order of their seeds."""
    ended, deadline = [], time.monotonic() + limit_s
    while len(ended) < count:
        assert time.monotonic() < deadline
        ended += player.poll()
    return sorted(ended, key=lambda t: t.seed)


def shown(trajectories):
    return [(t.seed, [(x.action_ids, x.command, x.observation_text) for x in t.transitions]) for t in trajectories]


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
