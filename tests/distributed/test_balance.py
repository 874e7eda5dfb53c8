"""How sequences are split among ranks: every one once, equally many micro-batches, tokens in balance."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.config import TrainerConfig, load_preset, validate
from paw_fast.distributed import launch
from paw_fast.distributed.balance import plan_ranks, split_by_tokens
from paw_fast.distributed.sharding import shard_policy
from paw_fast.errors import UserError
from paw_fast.learner import packing
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.trainer import train


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 8), st.integers(50, 120))
def test_every_sequence_is_run_once(lengths, ranks, budget):
    plans = plan_ranks(lengths, budget, ranks)
    assert sorted(i for plan in plans for members in plan for i in members) == list(range(len(lengths)))
    assert len({len(plan) for plan in plans}) == 1
    assert all(sum(lengths[i] for i in members) <= budget for plan in plans for members in plan)
    tokens = [sum(lengths[i] for i in share) for share in split_by_tokens(lengths, ranks)]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


def test_a_micro_batch_without_members_has_one_row_without_a_loss():
    batch = packing.pack([], [], [], torch.device("cpu"))
    assert (batch.members, batch.lengths) == ((), (1,))
    assert (batch.rows.kinds.tolist(), batch.rows.weights.tolist()) == ([0], [0])
    assert len(batch.value_rows().index) == 0


def with_trainer(gpus, replicate=1, **rollout):
    base = load_preset("tiny")
    return dataclasses.replace(
        base, trainer=TrainerConfig(gpus, replicate), rollout=dataclasses.replace(base.rollout, **rollout)
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_trainer(4, 3), r"--trainer.replicate is 3, expected a divisor of --trainer.gpus, 4"),
        (with_trainer(2, transport="nccl"), r"--rollout.transport is nccl, expected shared or auto"),
        (with_trainer(2, engine="vllm"), r"--rollout.engine is vllm, expected --rollout.placement process"),
    ],
)
def test_what_several_ranks_cannot_do_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        validate(config)


def test_torchrun_and_the_option_must_agree(monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    assert launch.is_follower()
    assert launch.with_world_size(with_trainer(1), given=False).trainer.gpus == 3
    with pytest.raises(UserError, match=r"--trainer.gpus is 2, and torchrun has started 3 processes"):
        launch.with_world_size(with_trainer(2), given=True)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UserError, match="WORLD_SIZE"):
        launch.world_size()


def test_python_does_not_start_processes(tmp_path):
    with pytest.raises(UserError, match="not from Python"):
        train(with_trainer(2), tmp_path)


@pytest.mark.parametrize(("change", "message"), [("head", "the LM head of this model is a"), ("frozen", "LoRA")])
def test_models_that_cannot_be_sharded_are_refused(change, message):
    model = tiny.build_model(60, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32)
    if change == "head":
        model.lm_head = torch.nn.Sequential(model.lm_head)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        model.get_input_embeddings().requires_grad_(False)
    policy = Policy(model, None)
    with pytest.raises(UserError, match=message):
        shard_policy(policy, [], None)  # pyright: ignore[reportArgumentType]
