"""Worker processes, with each engine: the same episodes, new weights, deaths, hangs, time limits."""

import copy
import dataclasses
import os
import signal
import time

import pytest
import torch
from rollout_helpers import check_logprobs, finish, plan, shown

from paw_fast.errors import UserError
from paw_fast.models.policy import Policy
from paw_fast.rollout.factory import make_engine, make_loop
from paw_fast.rollout.worker import LocalRolloutWorker
from paw_fast.rollout.worker_pool import RolloutWorkerPool

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="weights travel through memfd, which is Linux's"
)


@pytest.fixture(scope="module")
def config(small_config, generator):
    return small_config(engine=generator, placement="process", sync_timeout_s=60.0, hang_timeout_s=60.0)


@pytest.fixture(scope="module")
def policy(start):
    """The trainer's; tests that change it put it back."""
    return Policy(copy.deepcopy(start.model), start.tokenizer)


def inline(config, policy, env, episodes):
    """The same episodes with the transformers engine in this process."""
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, engine="transformers"))
    loop = make_loop(policy.tokenizer, policy.model.config, make_engine(policy, config), env, config)
    worker = LocalRolloutWorker(loop, sync_timeout_s=60.0)
    worker.submit(episodes)
    return finish(worker, len(episodes))


def test_logprobs_are_those_of_the_policy(pool, config, policy, small_env):
    """Both engines; the transformers one also samples the very tokens that it samples in this process."""
    episodes = plan(small_env)
    pool.submit(episodes)
    got = finish(pool, len(episodes))
    assert [t.episode_id for t in got] == [one.episode_id for one in episodes]
    if config.rollout.engine == "transformers":
        assert shown(got) == shown(inline(config, policy, small_env, episodes))
    check_logprobs(policy, got, 0)


def test_new_weights_are_sampled_with_after_the_sync(pool, config, policy, small_env):
    kept = copy.deepcopy(policy.model.state_dict())
    try:
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1.2)
        pool.update_weights(5)
        pool.submit(plan(small_env))
        check_logprobs(policy, finish(pool, 4), 5)
    finally:
        policy.model.load_state_dict(kept)
        pool.update_weights(6)


def test_signs_of_life_tell_what_it_was_busy_with(pool, small_env):
    pool.take_spans()
    pool.submit(plan(small_env))
    finish(pool, 4)
    deadline = time.monotonic() + 10
    spans = {}
    while not spans and time.monotonic() < deadline:
        pool._receive(0.1)
        spans = pool.take_spans()
    rows = spans["worker 0"]
    assert {"generate", "prompt", "environment"} <= {name for name, _, _ in rows}
    assert all(start <= end < time.perf_counter() for _, start, end in rows)


def test_a_killed_process_is_restarted_and_its_episodes_are_played_again(pool, small_env, capfd):
    episodes = plan(small_env, seed=1)
    pool.submit(episodes)
    expected = finish(pool, 4)
    pool.submit(episodes)
    victim = pool._workers[0].process.pid
    os.kill(victim, signal.SIGKILL)
    got = finish(pool, 4)
    assert pool._workers[0].process.pid != victim
    assert {v for t in got for x in t.transitions for v in x.policy_versions} == {pool.policy_version}
    assert shown(got) == shown(expected)
    said = " ".join(capfd.readouterr().err.split())
    assert f"worker 0 (process {victim}" in said
    assert "4 episodes are played again" in said


def test_a_process_that_hangs_in_a_sync_is_restarted(pool, config, policy, small_env, capfd):
    """With the weights that it was to load, as one that hangs while it plays."""
    quick = dataclasses.replace(config.rollout, sync_timeout_s=1.0)
    pool.config = dataclasses.replace(config, rollout=quick)
    process = pool._workers[0].process.pid
    os.kill(process, signal.SIGSTOP)
    try:
        pool.submit(plan(small_env))
        pool.update_weights(9)
    finally:
        pool.config = config
    assert pool._workers[0].process.pid != process
    check_logprobs(policy, finish(pool, 4), 9)
    said = " ".join(capfd.readouterr().err.split())
    assert f"worker 0 (process {process}" in said
    assert "has not loaded the weights of version 9 in 1 s (transport: shared; see --rollout.sync-timeout-s)" in said
    assert "4 episodes are played again" in said


def hang_while_playing(pool, config, episodes):
    """Stops the process, submits the episodes, and waits until another process has replaced it."""
    pool.config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, hang_timeout_s=2.0))
    process = pool._workers[0].process.pid
    os.kill(process, signal.SIGSTOP)
    try:
        pool.submit(episodes)
        pool._workers[0].seen_s = time.monotonic()
        while pool._workers[0].process.pid == process:
            pool.poll()
    finally:
        pool.config = config


def test_a_process_that_hangs_is_restarted(pool, config, small_env, capfd):
    hang_while_playing(pool, config, plan(small_env))
    assert len(finish(pool, 4)) == 4
    assert "no sign of life for 2 s" in " ".join(capfd.readouterr().err.split())


def test_messages_to_a_process_that_does_not_read_hold_nothing_up(pool, config, small_env):
    """More than a pipe takes is handed to a stopped process; the trainer goes on, and notices by its time limit."""
    episodes = [
        dataclasses.replace(one, task=dataclasses.replace(one.task, info={**one.task.info, "weight": "x" * (1 << 20)}))
        for one in plan(small_env, seed=3)
    ]
    hang_while_playing(pool, config, episodes)
    assert len(finish(pool, 4)) == 4


def test_a_process_that_cannot_start_says_why_in_one_line(config, start, small_env, tmp_path):
    broken = dataclasses.replace(config, env=dataclasses.replace(config.env, template="/nowhere.toml"))
    with pytest.raises(UserError, match=r"/nowhere\.toml") as error:
        RolloutWorkerPool(broken, start, tmp_path)
    assert "\n" not in str(error.value)
