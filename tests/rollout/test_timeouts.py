"""Tests of limits: episodes that exceed their budget are ended and marked, and blocking calls are reported."""

import os
import signal
import subprocess
import sys
import time

import pytest
from rollout_helpers import finish, in_order, plan

from paw_fast.rollout.engines.base import EngineError
from paw_fast.rollout.episode_metrics import episode_metrics
from paw_fast.rollout.factory import make_engine, make_loop
from paw_fast.rollout.timeouts import time_limit
from paw_fast.rollout.worker import LocalRolloutWorker
from paw_fast.rollout.worker_pool import RolloutWorkerPool


def play(config, policy, env):
    """Runs the episodes with the transformers engine in this process."""
    loop = make_loop(policy.tokenizer, policy.model.config, make_engine(policy, config), env, config)
    return in_order(loop.play(plan(env)))


def sampled(trajectory):
    return [len(x.action_ids) for x in trajectory.transitions]


def actions(trajectory):
    return [(x.action_ids, x.observation_ids) for x in trajectory.transitions]


def test_an_episode_ends_after_the_turn_that_exceeds_its_token_budget(small_config, small_env, start):
    whole = play(small_config(), start, small_env)
    budget = 8
    cut = play(small_config(max_episode_tokens=budget), start, small_env)
    marked = [t.overrun for t in cut]
    assert "tokens" in marked
    for short, full in zip(cut, whole, strict=True):
        spent = sampled(short)
        assert actions(short) == actions(full)[: len(spent)]
        if short.overrun:
            assert sum(spent[:-1]) < budget <= sum(spent)
            assert (short.truncated, short.won) == (True, False)
        else:
            assert len(spent) == len(full.transitions)
    assert not any(t.overrun for t in whole)
    assert episode_metrics(cut)["episode/overrun_rate"] == marked.count("tokens") / 4


def test_an_episode_ends_during_an_action_when_its_time_is_up(small_config, small_env, start):
    """Its start is set back two hours. The action in flight is dropped, and other episodes are unaffected."""
    config = small_config(max_episode_s=3600.0)
    whole = play(config, start, small_env)
    loop = make_loop(start.tokenizer, start.model.config, make_engine(start, config), small_env, config)
    loop.add(plan(small_env))
    ended, late = [], None
    while loop.busy:
        under_way = [e for e in loop._live.values() if e.transitions and e.number in loop.engine._running]
        if late is None and under_way:
            late = under_way[0]
            late.started_s -= 7200
        ended += loop.step()
    ended = in_order(ended)
    assert [t.overrun for t in ended] == ["time" if t.episode_id == late.request.episode_id else "" for t in ended]
    for one, full in zip(ended, whole, strict=True):
        assert actions(one) == actions(full)[: len(one.transitions)]
        assert one.overrun or len(one.transitions) == len(full.transitions)
    (cut,) = (t for t in ended if t.overrun)
    assert 0 < len(cut.transitions) < 3
    assert (cut.truncated, cut.won) == (True, False)
    assert not loop.engine._running
    assert len(loop.engine._free) == config.rollout.slots


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create, which only Linux has")
def test_a_worker_process_ends_and_marks_episodes(small_config, small_env, start, tmp_path):
    pool = RolloutWorkerPool(small_config(placement="process", max_episode_s=1e-3), start, tmp_path)
    try:
        for _ in range(2):
            pool.submit(plan(small_env))
            ended = finish(pool, 4)
            assert [(t.overrun, t.truncated, len(t.transitions)) for t in ended] == [("time", True, 1)] * 4
            assert episode_metrics(ended)["episode/overrun_rate"] == 1
    finally:
        pool.close()


# --------------------------------------------------------------------------------------------- blocking calls


class Hanging:
    """An engine whose update of the weights never returns."""

    policy_version = 0

    def __init__(self, chat):
        self.chat = chat

    def update_weights(self, version):
        time.sleep(600)

    def release(self, episode):
        pass


def test_a_blocked_weight_update_is_reported_within_its_limit(small_config, small_env, start, chat):
    config = small_config()
    loop = make_loop(start.tokenizer, start.model.config, Hanging(chat), small_env, config)
    start_s = time.monotonic()
    with pytest.raises(EngineError, match=r"waited 0\.2 s for the engine .* version 7; see --rollout\.sync-timeout"):
        LocalRolloutWorker(loop, sync_timeout_s=0.2).update_weights(7)
    assert time.monotonic() - start_s < 30


def test_time_limit_restores_another_timer():
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(True))
    try:
        left = signal.setitimer(signal.ITIMER_REAL, 500)
        with time_limit(100, "nothing", "--x"):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
        signal.raise_signal(signal.SIGALRM)
        assert heard == [True]
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before)


def test_a_call_that_never_returns_to_python_ends_the_process():
    """Blocking C code (here sigwait with SIGALRM blocked) cannot be interrupted, but the process must not hang."""
    program = (
        "import signal; from paw_fast.rollout import timeouts; timeouts.GRACE_S = 0.2\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "with timeouts.time_limit(0.2, 'the weights', '--rollout.sync-timeout-s'):\n"
        "    signal.sigwait([signal.SIGUSR1])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr == "error: waited 0.2 s for the weights; see --rollout.sync-timeout-s\n"
