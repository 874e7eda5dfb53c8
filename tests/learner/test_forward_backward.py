"""The head's two paths, fused and through the module, give the same numbers; neither builds [tokens, V]."""

import dataclasses
import types

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from paw_fast import kernels
from paw_fast.kernels import LossSettings
from paw_fast.kernels.linear_paw_loss import chunk_rows
from paw_fast.learner import forward_backward, packing
from paw_fast.models import tiny
from paw_fast.models.policy import Policy, logit_map, map_logits
from paw_fast.types import Span, TokenSequence

VOCAB, HIDDEN = 120, 32
SETTINGS = LossSettings(kl_coef=0.1, entropy_coef=0.01, temperature=0.8)


class Lora(nn.Module):
    """A linear layer with a low-rank addition, as adapters wrap it."""

    def __init__(self, base: nn.Linear, rank: int = 3):
        super().__init__()
        self.base, self.weight = base, base.weight
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.up = nn.Parameter(torch.randn(base.out_features, rank) * 0.1)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def build(head: str) -> Policy:
    model = tiny.build_model(VOCAB, hidden=HIDDEN, layers=1, heads=4, kv_heads=2, ffn=48, seed=1)
    if head != "tied":
        torch.manual_seed(5)
        model.lm_head = nn.Linear(HIDDEN, VOCAB, bias=head == "bias")
        if head == "frozen":
            model.lm_head.requires_grad_(False)
        if head == "lora":
            model.lm_head = Lora(model.lm_head.requires_grad_(False))
    return Policy(model, None)


def batch_of(policy: Policy, lengths=(30, 17, 9)) -> packing.PackedBatch:
    rng = np.random.default_rng(3)
    sequences, tables = [], []
    for n in lengths:
        ids = tuple(int(i) for i in rng.integers(5, VOCAB, n))
        sequence = TokenSequence(0, ids, (Span(0, (n // 3, 2 * n // 3), tuple(range(2 * n // 3, n)), (0.0,)),))
        table = packing.join_rows(packing.action_rows(sequence), packing.observation_rows(sequence, [0.3]))
        rows = len(table.positions)
        table.weights[:] = rng.random(rows)
        table.advantages[:] = rng.normal(size=rows)
        table.old_logprobs[:] = table.ref_logprobs[:] = -5 + rng.normal(size=rows)
        sequences.append(sequence)
        tables.append(table)
    return packing.pack(sequences, tables, range(len(lengths)), policy.device)


def run(policy: Policy, batch, chunk: int):
    policy.model.zero_grad()
    result = forward_backward.backward(policy, batch, SETTINGS, chunk)
    return result, {n: None if p.grad is None else p.grad.clone() for n, p in policy.model.named_parameters()}


@pytest.mark.parametrize("head", ["tied", "untied", "bias", "frozen"])
@pytest.mark.parametrize("chunk", [7, 10**6])
def test_fused_and_module_paths_agree(head, chunk, monkeypatch):
    policy = build(head)
    batch = batch_of(policy)
    calls = []
    real = kernels.linear_paw_loss
    monkeypatch.setattr(kernels, "linear_paw_loss", lambda *a, **k: calls.append(1) or real(*a, **k))
    fused, gradients = run(policy, batch, chunk)
    assert len(calls) == 1
    policy.lm_head.register_forward_hook(lambda module, inputs, output: None)  # a head that is more than a product
    module, expected = run(policy, batch, chunk)
    assert len(calls) == 1
    for field in dataclasses.fields(fused):
        torch.testing.assert_close(getattr(fused, field.name), getattr(module, field.name), rtol=1e-5, atol=1e-6)
    assert (gradients.get("lm_head.weight") is None) == (head in ("tied", "frozen"))
    for name, gradient in gradients.items():
        assert (gradient is None) == (expected[name] is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=2e-6)


def test_an_adapter_on_the_head_is_trained_through_the_module():
    policy = build("lora")
    batch = batch_of(policy)
    _, gradients = run(policy, batch, 7)
    head = policy.lm_head
    merged = build("untied")
    with torch.no_grad():
        merged.lm_head.weight.copy_(head.base.weight + head.up @ head.down)
    _, expected = run(merged, batch, 10**6)
    whole = expected["lm_head.weight"]
    torch.testing.assert_close(gradients["lm_head.up"], whole @ head.down.T, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients["lm_head.down"], head.up.T @ whole, rtol=1e-4, atol=1e-6)
    assert head.base.weight.grad is None
    torch.testing.assert_close(
        gradients["model.layers.0.mlp.up_proj.weight"], expected["model.layers.0.mlp.up_proj.weight"],
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("head", ["tied", "lora"])
def test_no_logits_beyond_a_chunk(head):
    policy = build(head)
    batch = batch_of(policy, (400, 300))
    rows, chunk = len(batch.rows.targets), HIDDEN  # no smaller than the other side of the weight
    assert rows > 10 * chunk
    run(policy, batch, chunk)
    for call in (
        lambda: run(policy, batch, chunk),
        lambda: forward_backward.compute_token_stats(policy, batch, 1.0, chunk),
    ):
        shapes = []
        with torch.profiler.profile(record_shapes=True) as profile:
            call()
        for event in profile.events():
            shapes += [s for s in event.input_shapes if len(s) == 2 and s[1] == VOCAB]
        assert shapes
        assert max(s[0] for s in shapes) <= chunk


def test_score_matches_the_whole_distribution():
    policy = build("untied")
    batch = batch_of(policy)
    logprobs, entropies, _ = forward_backward.compute_token_stats(policy, batch, 0.7, 5)
    with torch.no_grad():
        hidden = policy.hidden(batch.input_ids, batch.position_ids, batch.lengths)[batch.row_tokens]
        exact = torch.log_softmax(policy.lm_head(hidden).double() / 0.7, -1)
    torch.testing.assert_close(logprobs.double(), exact.gather(1, batch.rows.targets[:, None])[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies.double(), -(exact.exp() * exact).sum(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["untied", "lora"])
def test_the_sampling_temperature_is_the_policys_alone(head):
    """World-model rows are predicted at temperature 1, as `predict` measures them, through either path of the head."""
    policy = build(head)
    batch = batch_of(policy)
    observed = batch.rows.kinds == kernels.WORLD_MODEL
    at_one, _ = forward_backward.predict(policy, batch, 7)
    at_sampling, _, _ = forward_backward.compute_token_stats(policy, batch, 0.4, 7)
    result = forward_backward.backward(policy, batch, LossSettings(temperature=0.4, tau=1.0), 7)
    torch.testing.assert_close(result.logprobs[observed], at_one[observed], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.logprobs[~observed], at_sampling[~observed], atol=1e-5, rtol=1e-5)
    expected = batch.rows.weights[observed] * (1 - at_one[observed].exp())
    torch.testing.assert_close(result.losses[observed], expected, atol=1e-6, rtol=1e-5)


SHAPE = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "head_dim": 8,
}  # fmt: skip
OWN_MAPS = {
    "gemma": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SHAPE, final_logit_softcapping=2.0)),
    "granite": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**SHAPE, logits_scaling=0.3)),
    "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**SHAPE, logit_scale=5.0)),
}


@pytest.mark.parametrize("family", OWN_MAPS)
def test_caps_and_scales_of_the_model_are_those_of_its_own_forward(family):
    torch.manual_seed(2)
    model = OWN_MAPS[family]().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)  # far enough from zero for a cap to matter
    ids = torch.randint(5, VOCAB, (1, 9))
    with torch.no_grad():
        want = model(ids).logits[0]
        bare = model.get_output_embeddings()(model.base_model(ids).last_hidden_state[0])
    assert not torch.allclose(bare, want, atol=0.1)
    torch.testing.assert_close(map_logits(model, bare), want)
    softcap, divisor = logit_map(model)
    out = kernels.token_logprobs(bare, ids[0], divisor, softcap=softcap)
    torch.testing.assert_close(out.logprobs, want.log_softmax(-1).gather(1, ids.T)[:, 0], atol=1e-5, rtol=1e-5)


def test_training_and_scoring_use_the_models_own_map():
    plain, capped = build("untied"), build("untied")
    capped.model.config.logits_scaling = 2.0
    batch = batch_of(plain)
    for got, want in zip(
        forward_backward.compute_token_stats(capped, batch, 0.5, 7)[:2],
        forward_backward.compute_token_stats(plain, batch, 1.0, 7)[:2],
        strict=True,
    ):
        torch.testing.assert_close(got, want)
    halved = dataclasses.replace(SETTINGS, temperature=SETTINGS.temperature / 2, wm_temperature=0.5)
    got = forward_backward.backward(capped, batch, halved, 7)
    torch.testing.assert_close(got.losses, forward_backward.backward(plain, batch, SETTINGS, 7).losses)


@pytest.mark.parametrize(
    ("vocab", "dtype", "row"), [(50257, torch.bfloat16, 50304 * 2), (151936, torch.float32, 607744)]
)
def test_chunks_count_the_aligned_rows_of_the_kernel(vocab, dtype, row):
    """The kernel's buffer rounds rows up to 128 bytes; a budget of 300 such rows holds 300, a byte less 299."""
    with torch.device("meta"):
        head = nn.Linear(4, vocab, bias=False, dtype=dtype)
    policy = types.SimpleNamespace(lm_head=head)
    assert forward_backward.rows_per_chunk(policy, 300 * row) == 300
    assert forward_backward.rows_per_chunk(policy, 300 * row - 1) == 299
    assert forward_backward.rows_per_chunk(policy, 1) == 1
    assert chunk_rows(1000, head.weight, 300 * row) == 256  # the kernel takes multiples of 128
