"""GiGPO's anchors: the state's text, or the observation's alone, whole however little the policy reads of it."""

import dataclasses

import pytest
from rollout_helpers import plan

from paw_fast.rollout.factory import make_engine, make_loop


@pytest.mark.parametrize("max_chars", [0, 20])
def test_an_anchor_is_what_the_environment_said(small_config, small_env, start, max_chars):
    anchors = {}
    for anchor in ("state", "observation"):
        base = small_config()
        config = dataclasses.replace(
            base, algo=dataclasses.replace(base.algo, anchor=anchor),
            env=dataclasses.replace(base.env, max_observation_chars=max_chars),
        )  # fmt: skip
        loop = make_loop(start.tokenizer, start.model.config, make_engine(start, config), small_env, config)
        trajectories = sorted(loop.play(plan(small_env)), key=lambda t: t.seed)
        anchors[anchor] = [[x.anchor_obs for x in t.transitions] for t in trajectories]
        for trajectory in trajectories:
            env = small_env.spawn()
            seen = env.reset(trajectory.task)
            for turn in trajectory.transitions:
                expected = seen.text if anchor == "observation" else "\n".join((seen.text, *seen.admissible))
                assert turn.anchor_obs == expected
                seen = env.step(turn.command).observation
    assert anchors["state"] != anchors["observation"]
    assert all(len(a) > 20 for rows in anchors["observation"] for a in rows[:1])
