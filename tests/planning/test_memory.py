"""The prediction of memory: by hand for a small shape, against constants of other modules, against measurements."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from paw_fast.config import LoraConfig, OffloadConfig, load_preset, with_algo
from paw_fast.models.packed_attention import SlotCache
from paw_fast.planning import memory
from paw_fast.planning.activations import backward_bytes, cache_bytes, update_bytes
from paw_fast.planning.machine import GIB, MIB, Card, Machine, parse_gpus
from paw_fast.planning.memory import (
    FITS,
    TIGHT,
    TOO_LARGE,
    Part,
    Prediction,
    host_bytes,
    predict_rollout,
    predict_trainer,
)
from paw_fast.planning.shapes import ModelShape, find_shape
from paw_fast.planning.workload import COMPACT, Workload, estimate
from paw_fast.rollout.engines import transformers as engine

SHAPE = ModelShape("m", "llama", hidden=64, layers=2, heads=4, kv_heads=2, head_size=16, ffn=128, vocab=1000)
PARAMETERS = 2 * (64 * (2 * 64 + 2 * 32) + 3 * 64 * 128 + 128) + 64 + 64_000
WORK = Workload(4, 2.0, COMPACT, sequence=100, longest=120, trained=4000, sampled=400, rows=800)
GPU = Machine("cuda", Card("card", 80 * GIB))
CPU = Machine("cpu", Card("RAM", 16 * GIB))


def config(**changes):
    base = load_preset("tiny")
    algo = dataclasses.replace(base.algo, minibatches=1, kl_coef=changes.pop("kl_coef", 0.0))
    return dataclasses.replace(base, token_budget=1000, algo=algo, **changes)


def sizes(prediction):
    return {part.name: part.size for part in prediction.parts}


def test_weights_and_optimizer_by_hand():
    assert SHAPE.num_parameters == PARAMETERS == 138_048
    on_gpu, on_cpu = (
        sizes(predict_trainer(config(), SHAPE, GPU, WORK)),
        sizes(predict_trainer(config(), SHAPE, CPU, WORK)),
    )
    assert on_gpu["weights"] == on_gpu["gradients"] == 2 * PARAMETERS
    assert on_gpu["master weights"] == 4 * PARAMETERS
    assert on_gpu["optimizer states"] == on_cpu["optimizer states"] == 8 * PARAMETERS
    assert on_gpu["temporaries of AdamW"] == 4 * PARAMETERS + 2 * 64_000 * 4  # gradients in float32, as on the CPU
    assert on_cpu["weights"] == on_cpu["gradients"] == 4 * PARAMETERS
    assert "master weights" not in on_cpu
    assert on_cpu["temporaries of AdamW"] == 2 * 64_000 * 4  # of the embedding, the largest parameter
    assert "reference model" not in on_gpu
    assert sizes(predict_trainer(config(kl_coef=0.01), SHAPE, GPU, WORK))["reference model"] == 2 * PARAMETERS


def test_activations_logits_and_cache_by_hand():
    found = sizes(predict_trainer(config(logits_budget_mb=64), SHAPE, CPU, WORK))
    assert found["activations"] == 1000 * update_bytes(SHAPE, 4, checkpointing=False)
    assert found["gradient of the LM head"] == 4 * 64_000
    logits = 200 * 1000 * 4  # a fifth of the tokens has a loss
    assert found["logits chunks"] == 2 * logits
    assert found["logits chunk, temporaries"] == max(logits + 2 * 200 * 64 * 4, 1000 * backward_bytes(SHAPE, 4))
    # 64 slots of 256 tokens, in which the longest sequence of 120 fits
    assert found["keys and values"] == 64 * 256 * cache_bytes(SHAPE, 4)


def test_a_logits_chunk_is_no_larger_than_its_budget():
    shape = dataclasses.replace(SHAPE, vocab=100_000)
    found = sizes(predict_trainer(config(logits_budget_mb=1), shape, CPU, WORK))
    assert found["logits chunks"] == 2 * MIB


def test_a_critic_of_its_own_doubles_the_model():
    ppo = with_algo(config(), "ppo")
    found = sizes(predict_trainer(ppo, SHAPE, GPU, WORK))
    assert found["critic: weights"] == 2 * PARAMETERS
    assert found["critic: optimizer states"] == 8 * PARAMETERS  # tied: the backbone holds all parameters
    shared = dataclasses.replace(ppo, critic=dataclasses.replace(ppo.critic, backbone="shared"))
    assert "critic: weights" not in sizes(predict_trainer(shared, SHAPE, GPU, WORK))


def test_shards_divide_weights_gradients_and_states():
    whole, part = (sizes(predict_trainer(config(), SHAPE, GPU, WORK, shards=n)) for n in (1, 8))
    for name in ("weights", "master weights", "optimizer states", "gradients"):
        assert part[name] == whole[name] // 8


def with_lora(base, **settings):
    return dataclasses.replace(base, lora=LoraConfig(**settings))


def test_adapters_by_hand():
    """Per layer, q, k, v, o: 64 -> 64, 32, 32 and 64 -> 64; gate, up, down: 64 and 128."""
    adapters = 4 * 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert SHAPE.adapter_parameters(4) == adapters
    assert SHAPE.adapter_parameters(4, head=True) == adapters + 4 * (64 + 1000)
    found = sizes(predict_trainer(with_lora(config(kl_coef=0.01), rank=4), SHAPE, GPU, WORK))
    assert found["weights"] == 2 * PARAMETERS
    assert found["adapters"] == found["gradients"] == 2 * adapters
    assert found["master weights"] == 4 * adapters
    assert found["optimizer states"] == 8 * adapters
    assert found["temporaries of AdamW"] == 4 * adapters + 2 * 4 * 128 * 4  # down_proj's A is the largest
    assert "reference model" not in found
    assert found["gradient of the LM head"] == 0
    ppo = with_algo(with_lora(config(), rank=4), "ppo")
    assert sizes(predict_trainer(ppo, SHAPE, GPU, WORK))["critic: weights"] == 2 * adapters


def test_offloading_by_hand():
    offload = OffloadConfig(optimizer=True, reference=True)
    on_gpu, on_cpu = (
        sizes(predict_trainer(config(kl_coef=0.01, offload=offload), SHAPE, machine, WORK)) for machine in (GPU, CPU)
    )
    assert not {"master weights", "optimizer states"} & on_gpu.keys()
    assert on_gpu["temporaries of AdamW"] == 4 * 64_000
    assert on_gpu["reference model"] == 2 * 64_000  # the embedding
    assert on_cpu["reference model"] == 4 * PARAMETERS  # nothing is gained on the CPU
    assert on_cpu["optimizer states"] == 8 * PARAMETERS
    # Two moments, float32 weights and gradients; the reference in 16 bits.
    assert host_bytes(config(kl_coef=0.01, offload=offload), SHAPE) == (16 + 2) * PARAMETERS
    assert host_bytes(config(), SHAPE) == 0


def long_config(card_layout="trajectory", **changes):
    """A 1.5B recipe on trajectories of 16k tokens."""
    base = load_preset("alfworld-qwen2.5-1.5b")
    rollout = dataclasses.replace(base.rollout, max_sequence_tokens=16384, slots=16, placement="process", gpus="1")
    env = dataclasses.replace(base.env, max_steps=500)
    model = dataclasses.replace(base.model, gradient_checkpointing=changes.pop("checkpointing", True))
    return dataclasses.replace(base, layout=card_layout, rollout=rollout, env=env, model=model, **changes)


@pytest.mark.parametrize(
    ("card", "changes", "verdict"),
    [
        ("H100-80GB", {}, FITS),
        ("A100-40GB", {"checkpointing": False}, TOO_LARGE),
        ("RTX4090-24GB", {}, TOO_LARGE),
        ("RTX4090-24GB", {"offload": OffloadConfig(optimizer=True, reference=True)}, FITS),
        ("RTX4090-24GB", {"lora": LoraConfig(rank=32)}, FITS),
    ],
)
def test_trajectories_of_16k_tokens_of_a_1_5b_model(card, changes, verdict):
    run = long_config(**changes)
    work = estimate(run, 32768)
    assert work.longest == 16384
    assert predict_trainer(run, find_shape(run), parse_gpus(card), work).verdict == verdict


def test_vllm_takes_its_share():
    base = config()
    vllm = dataclasses.replace(base, rollout=dataclasses.replace(base.rollout, engine="vllm", memory_share=0.3))
    found = sizes(predict_trainer(vllm, SHAPE, GPU, WORK))
    assert found["vLLM"] == int(0.3 * 80 * GIB)
    assert "keys and values" not in found
    separate = dataclasses.replace(vllm, rollout=dataclasses.replace(vllm.rollout, placement="process", gpus="1"))
    assert "vLLM" not in sizes(predict_trainer(separate, SHAPE, GPU, WORK))
    assert predict_rollout(separate, SHAPE, GPU, WORK).available == int(0.3 * 80 * GIB)


def test_verdicts():
    parts = (Part("tensors", 80), Part("allocator", 10, estimated=True))
    assert [Prediction("d", size, parts).verdict for size in (90, 89, 80, 79)] == [FITS, TIGHT, TIGHT, TOO_LARGE]


def test_constants_are_those_of_the_modules_that_they_describe():
    assert memory.PREFILL_TOKENS == engine.PREFILL_TOKENS
    assert SlotCache(1, 4096)._capacity == memory.FIRST_CAPACITY


def test_malloc_that_gives_blocks_back_needs_less(monkeypatch):
    monkeypatch.delenv(memory.MMAP_THRESHOLD, raising=False)
    kept = sizes(predict_trainer(config(), SHAPE, CPU, WORK))["allocator"]
    monkeypatch.setenv(memory.MMAP_THRESHOLD, "1048576")
    assert sizes(predict_trainer(config(), SHAPE, CPU, WORK))["allocator"] < kept / 10


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).resolve().parents[2] / "bench" / "plan.py"
    spec = importlib.util.spec_from_file_location("bench_plan", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_plan"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_plan"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpointing", "more"),
    [(False, {}), (True, {}), (False, {"lora": 8}), (True, {"lora": 8}), (True, {"episodes": 1, "prompt": 16384})],
)
def test_tensors_of_a_real_step_are_predicted(bench, checkpointing, more):
    """The most bytes that torch has allocated at once in a training step, by its profiler: no allocator's slack."""
    if "lora" in more:
        pytest.importorskip("peft", reason="needs the extra lora")
    case = bench.Case(128, 3, 4, 2, 512, 1024, "trajectory", checkpointing, 1024, episodes=4, turns=3)
    case = dataclasses.replace(case, **more)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        bench.take_steps(case)
    events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    assert bench.predict(case).peak == pytest.approx(most, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_measured_peak_of_a_process_is_predicted(bench):
    case = bench.CASES["2m-trajectory"]
    assert bench.predict(case).peak == pytest.approx(bench.measure(case)[0], rel=0.1)
