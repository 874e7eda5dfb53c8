"""Activations: counted by hand, and against the tensors that autograd saves."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paw_fast.config import LoraConfig
from paw_fast.models.lora import add_adapters
from paw_fast.models.packed_attention import ATTENTION_NAME
from paw_fast.models.policy import Policy
from paw_fast.planning.activations import cache_bytes, layer_bytes, outer_bytes, update_bytes
from paw_fast.planning.shapes import ModelShape, read_shape

SHAPE = ModelShape("m", "llama", hidden=8, layers=3, heads=2, kv_heads=1, head_size=4, ffn=16, vocab=10)


def test_a_layer_by_hand():
    # Two norms: input and normalized input of 8 floats each, the factor, the output of 8.
    norms = 2 * ((32 + 32 + 4) + 32)
    # Queries, repeated keys and values, output and its copy, of 8 floats each; the log-sum-exp of two heads.
    attention = 5 * 32 + 2 * 4
    mlp = 4 * 16 * 4
    assert layer_bytes(SHAPE, 4) == norms + attention + mlp == 624
    assert layer_bytes(SHAPE, 4, joined=False) == 624 - 32
    # In bfloat16 half of it, but for float32 copies of the norms' inputs and their factors, and the log-sum-exp.
    assert layer_bytes(SHAPE, 2) == 2 * ((32 + 16 + 4) + 16) + 5 * 16 + 8 + 4 * 32


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer():
    outer = outer_bytes(SHAPE, 4)
    assert outer == 8 + 2 * 16 + (32 + 32 + 4) + 32
    assert update_bytes(SHAPE, 4, checkpointing=False) == 3 * 624 + outer
    assert update_bytes(SHAPE, 4, checkpointing=True) == 3 * 32 + 624 + outer


def test_cache_by_hand():
    assert cache_bytes(SHAPE, 2) == 2 * 3 * 1 * 4 * 2


def test_a_layer_with_adapters_by_hand():
    # Seven linear layers keep 2 elements more; two norms with frozen weights no longer keep 8 normalized elements.
    assert layer_bytes(SHAPE, 4, rank=2) == 624 + (7 * 2 - 2 * 8) * 4
    assert update_bytes(SHAPE, 2, checkpointing=True, rank=2) == 3 * 16 + layer_bytes(SHAPE, 2, rank=2) + outer_bytes(
        SHAPE, 2
    )


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_autograd_saves(kind, dtype, rank):
    if rank:
        pytest.importorskip("peft", reason="needs the extra lora")
    made = AutoConfig.for_model(
        kind, hidden_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=50, head_dim=16, tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(made, dtype=dtype, attn_implementation=ATTENTION_NAME)
    policy = Policy(model, None, add_adapters(model, LoraConfig(rank=rank), "m") if rank else None)
    lengths = (70, 58)
    ids = torch.randint(0, 50, (128,), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in lengths])
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept = {}  # with the tensors themselves, so that no address is used twice

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = policy.hidden(ids, positions, lengths)
    assert hidden.requires_grad
    found = sum(size for size, _ in kept.values())
    counted = 128 * update_bytes(read_shape(made.to_dict(), "m"), dtype.itemsize, checkpointing=False, rank=rank)
    assert counted == pytest.approx(found, rel=0.05)
