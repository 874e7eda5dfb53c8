"""Data parallel: two processes share a step's groups; and the transports that a machine without GPUs must refuse."""

import copy
import dataclasses
import json
import os
import signal
import time

import pytest
import torch
from rollout_helpers import check_logprobs, finish, in_order, plan, shown

from paw_fast.errors import UserError
from paw_fast.models.policy import Policy
from paw_fast.rollout.factory import make_engine, make_loop
from paw_fast.rollout.worker_pool import RolloutWorkerPool
from paw_fast.trainer import train

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="weights travel through memfd, which is Linux's"
)


@pytest.fixture(scope="module")
def config(small_config, generator):
    return small_config(engine=generator, placement="process", replicas=2, groups=4)


@pytest.fixture(scope="module")
def policy(start):
    return Policy(copy.deepcopy(start.model), start.tokenizer)


def plan4(env, seed=0):
    return plan(env, seed, groups=4)


def test_each_plays_half_of_the_groups_whole(pool, config, policy, small_env):
    episodes = plan4(small_env)
    pool.submit(episodes)
    held = [{one.group for one in worker.playing} for worker in pool._workers]
    assert [len(groups) for groups in held] == [2, 2]
    assert not held[0] & held[1]
    got = finish(pool, 8)
    check_logprobs(policy, got, 0)
    if config.rollout.engine == "transformers":
        loop = make_loop(policy.tokenizer, policy.model.config, make_engine(policy, config), small_env, config)
        assert shown(got) == shown(in_order(loop.play(episodes)))
    spans, deadline = {}, time.monotonic() + 30
    while len(spans) < 2 and time.monotonic() < deadline:
        pool._receive(0.1)
        for name, rows in pool.take_spans().items():
            spans.setdefault(name, []).extend(rows)
    assert sorted(spans) == ["worker 0", "worker 1"]
    assert all("generate" in {name for name, _, _ in rows} for rows in spans.values())


def test_both_get_new_weights(pool, policy, small_env):
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    pool.update_weights(1)
    assert [worker.version for worker in pool._workers] == [1, 1]
    pool.submit(plan4(small_env, seed=1))
    check_logprobs(policy, finish(pool, 8), 1)


def test_the_death_of_one_leaves_the_other_alone(pool, policy, small_env):
    pool.submit(plan4(small_env, seed=2))
    victim, other = (worker.process.pid for worker in pool._workers)
    os.kill(victim, signal.SIGKILL)
    check_logprobs(policy, finish(pool, 8), pool.policy_version)
    assert pool._workers[0].process.pid != victim
    assert pool._workers[1].process.pid == other


def test_a_run_trains_on_both(config, policy, small_env, tmp_path):
    """async, three steps: each update reaches both processes, and the trace shows who was busy."""
    model = tmp_path / "model"
    policy.model.save_pretrained(model)
    policy.tokenizer.save_pretrained(model)
    replace = dataclasses.replace
    config = replace(
        config, steps=3, eval_tasks=2, profile=True, model=replace(config.model, path=str(model)),
        pipeline=replace(config.pipeline, name="async"), optim=replace(config.optim, learning_rate=1e-4),
    )  # fmt: skip
    assert train(config, tmp_path / "run") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["step"] > 0]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert max(row["async/staleness_max"] for row in steps) == 1
    assert max(row["rollout/logprob_gap_max"] for row in steps if row["step"] == 1) < 2e-4
    assert all(0 <= row["idle/generator"] <= 1 for row in steps)
    events = json.loads((tmp_path / "run" / "trace.json").read_text())
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert sorted(names.values()) == ["trainer", "worker 0", "worker 1"]
    assert sum(e["name"] == "sync" and names[e["pid"]] == "trainer" for e in events if e["ph"] == "X") == 3


# ------------------------------------------------------------------------------------------- without a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transport": "ipc"}, r"--rollout\.transport ipc carries weights between GPUs, and the model is on the cpu"),
        ({"transport": "nccl"}, r"--rollout\.transport nccl carries weights between GPUs, and the model is on the cpu"),
        ({"gpus": "0"}, r"--rollout\.gpus 0: no CUDA device is visible"),
    ],
)
def test_what_needs_a_gpu_says_so_in_one_line(small_config, start, tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as error:
        RolloutWorkerPool(small_config(placement="process", **settings), start, tmp_path)
    assert "\n" not in str(error.value)


def test_tensor_parallel_wants_vllm_in_a_process(small_config):
    from paw_fast.config.validation import validate

    base = small_config(tensor_parallel=2, engine="transformers")
    with pytest.raises(UserError, match=r"rollout\.tensor-parallel is 2, expected 1, or --rollout\.engine vllm"):
        validate(base)
    with pytest.raises(UserError, match=r"rollout\.tensor-parallel is given, expected --rollout\.placement process"):
        validate(dataclasses.replace(base, rollout=dataclasses.replace(base.rollout, engine="vllm")))
