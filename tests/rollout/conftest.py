import pytest
import torch

from paw_fast import tiny
from paw_fast.policy import Policy
from paw_fast.rollout.chat import ChatFormat

TEXTS = ["You arrive at cabinet 1. On the cabinet 1, you see a mug 2, and a plate 1.", "go to cabinet 12", "look"] * 20


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="session")
def policy(tokenizer):
    """A random tiny model whose logits are spread out enough to sample different tokens."""
    model = tiny.build_model(len(tokenizer), hidden=48, layers=2, heads=4, kv_heads=2, ffn=96, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return Policy(model.eval(), tokenizer)


@pytest.fixture(scope="session")
def chat(tokenizer):
    return ChatFormat(tokenizer)
