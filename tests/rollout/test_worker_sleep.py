"""Worker processes that sleep during an update: all of them, before it begins, and awake after the weight sync."""

import copy
import dataclasses
import os
import signal

import pytest
from rollout_helpers import check_logprobs, finish, plan

from paw_fast.models.policy import Policy
from paw_fast.rollout.engines.base import EngineError

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="weights travel through memfd, which is Linux's"
)


@pytest.fixture(scope="module")
def config(small_config):
    return small_config(engine="transformers", placement="process", sync_timeout_s=60.0, hang_timeout_s=60.0)


@pytest.fixture(scope="module")
def policy(start):
    return Policy(copy.deepcopy(start.model), start.tokenizer)


def test_a_process_says_that_it_sleeps_and_wakes_with_the_weights(pool, policy, small_env):
    pool.submit(plan(small_env))
    finish(pool, 4)
    pool.sleep()
    assert [one.asleep for one in pool._workers] == [True]
    pool.update_weights(1)
    assert [one.asleep for one in pool._workers] == [False]
    pool.submit(plan(small_env))
    check_logprobs(policy, finish(pool, 4), 1)


def test_abandoned_episodes_rest_while_it_sleeps(pool, policy, small_env):
    """They are not abandoned in the process, which must not play on a sleeping engine."""
    pool.submit(plan(small_env))
    pool.stop()
    pool.sleep()
    pool.update_weights(2)
    pool.submit(plan(small_env, seed=5))
    check_logprobs(policy, finish(pool, 4), 2)


def test_a_process_that_dies_asleep_is_replaced_at_the_next_sync(pool, policy, small_env):
    pool.sleep()
    os.kill(pool._workers[0].process.pid, signal.SIGKILL)
    pool._workers[0].process.join(10)
    pool.update_weights(3)
    pool.submit(plan(small_env))
    check_logprobs(policy, finish(pool, 4), 3)


def test_a_process_that_does_not_fall_asleep_is_an_error(pool, config):
    """An update beside an engine that is awake could run out of memory."""
    process = pool._workers[0].process.pid
    pool.config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, sync_timeout_s=1.0))
    pool._workers[0].started_s -= 100
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(EngineError, match=r"waited 1 s for worker 0 .* to sleep"):
            pool.sleep()
    finally:
        os.kill(process, signal.SIGCONT)
        pool.config = config
