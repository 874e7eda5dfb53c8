"""GiGPO's anchors: the text of the state or of the observation, in full however little the policy reads of it."""

import dataclasses

import pytest
from rollout_helpers import in_order, plan

from paw_fast.rollout.factory import make_engine, make_loop


@pytest.mark.parametrize("max_chars", [0, 20])
def test_an_anchor_is_what_the_environment_said(small_config, small_env, start, max_chars):
    base = small_config()
    config = dataclasses.replace(base, env=dataclasses.replace(base.env, max_observation_chars=max_chars))
    loop = make_loop(start.tokenizer, start.model.config, make_engine(start, config), small_env, config)
    for trajectory in in_order(loop.play(plan(small_env))):
        env = small_env.spawn()
        seen = env.reset(trajectory.task)
        assert len(seen.text) > 20
        for t in trajectory.transitions:
            assert t.anchor_obs == "\n".join((seen.text, *seen.admissible))
            assert t.previous_text == seen.text
            seen = env.step(t.command).observation
