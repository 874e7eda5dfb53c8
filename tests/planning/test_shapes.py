"""Shapes of models: counts of parameters by hand, against transformers, and as published."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paw_fast.config import load_preset
from paw_fast.errors import UserError
from paw_fast.models import tiny
from paw_fast.planning.shapes import _TINY_NAMES, KNOWN_SHAPES, ModelShape, find_shape, read_shape

PUBLISHED = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}
"""Parameters by the model cards (safetensors metadata) of the Hugging Face hub."""


def config_of(path):
    base = load_preset("tiny")
    return dataclasses.replace(base, model=dataclasses.replace(base.model, path=str(path)))


def test_parameters_of_a_small_shape_by_hand():
    shape = ModelShape("m", "llama", hidden=8, layers=3, heads=2, kv_heads=1, head_size=4, ffn=16, vocab=10, tied=False)
    # q 64, k 32, v 32, o 64; gate, up, down 128 each; two norms of 8.
    assert shape.layer_parameters == 64 + 32 + 32 + 64 + 3 * 128 + 16 == 592
    # three layers, the last norm, embedding and head of 80 each
    assert shape.num_parameters == 3 * 592 + 8 + 80 + 80
    assert dataclasses.replace(shape, tied=True).num_parameters == 3 * 592 + 8 + 80


def test_known_shapes_have_the_published_sizes():
    assert {name: shape.num_parameters for name, shape in KNOWN_SHAPES.items()} == PUBLISHED


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_transformers(kind, tied):
    made = AutoConfig.for_model(
        kind, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=100, tie_word_embeddings=tied, head_dim=16 if kind == "qwen3" else 8,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    assert read_shape(made.to_dict(), "m").num_parameters == sum(p.numel() for p in model.parameters())


def test_tiny_is_what_the_warm_start_builds():
    config = load_preset("tiny")
    shape = find_shape(config)
    assert tiny.MAX_NAMES == _TINY_NAMES
    with torch.device("meta"):
        built = tiny.build_model(shape.vocab, layers=config.warm_start.layers, copying=config.warm_start.copying)
    assert shape.num_parameters == sum(p.numel() for p in built.parameters())


def test_a_folder_is_read_and_defaults_are_filled_in(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, '
        '"intermediate_size": 128, "vocab_size": 300}'
    )
    shape = find_shape(config_of(tmp_path))
    assert (shape.kv_heads, shape.tied, shape.head_size) == (4, False, 16)  # the defaults of LlamaConfig


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ('{"model_type": "mixtral"}', "memory can be predicted for models of type llama, mistral, qwen2, qwen3"),
    ],
)
def test_other_configs_are_refused(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=said):
        find_shape(config_of(tmp_path))


def test_unknown_hub_models_are_refused():
    with pytest.raises(UserError, match=r"nobody/none: its config\.json is neither"):
        find_shape(config_of("nobody/none"))
