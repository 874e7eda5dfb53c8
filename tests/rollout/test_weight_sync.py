"""Tests of weights in shared memory: exact copies, tied weights once, and never a mixture of two versions."""

import multiprocessing

import pytest
import torch

from paw_fast.models import tiny
from paw_fast.rollout.weight_sync import ModelWeights, SharedMemoryPublisher, named_weights


@pytest.fixture
def model():
    return tiny.build_model(50, hidden=32, layers=2, heads=2, kv_heads=1, ffn=48)


def raw(tensors):
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors}


def read(source, version, answer):
    answer.send(raw(source.tensors(version)))


def test_tied_weights_are_sent_once(model):
    assert model.config.tie_word_embeddings
    assert "model.embed_tokens.weight" in named_weights(model)
    assert "lm_head.weight" not in named_weights(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_process_reads_exact_copies(model, dtype):
    model = model.to(dtype)
    publisher = SharedMemoryPublisher(model)
    publisher.publish(3)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=read, args=(publisher.source(), 3, theirs))
    process.start()
    got = ours.recv()
    process.join()
    assert got == raw(ModelWeights(model).tensors(3))


def test_an_outdated_version_is_an_error(model):
    publisher = SharedMemoryPublisher(model)
    publisher.publish(0)
    source = publisher.source()
    with torch.no_grad():
        model.model.norm.weight.fill_(5.0)
    publisher.publish(1)
    assert float(dict(source.tensors(1))["model.norm.weight"].mean()) == 5.0
    with pytest.raises(RuntimeError, match=r"expected weights of version 0, .* have version 1"):
        list(source.tensors(0))


def test_weights_that_change_during_reading_are_an_error(model):
    publisher = SharedMemoryPublisher(model)
    publisher.publish(0)
    reading = publisher.source().tensors(0)
    next(reading)
    publisher.publish(1)
    with pytest.raises(RuntimeError, match="have version 1"):
        list(reading)
