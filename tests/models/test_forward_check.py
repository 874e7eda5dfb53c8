"""Tests of the check at start-up, the models it rejects, and of disabled dropout."""

import copy

import pytest
import torch
import transformers

from paw_fast.config import ModelConfig
from paw_fast.errors import UserError
from paw_fast.learner.critic import SeparateCritic
from paw_fast.models import packed_attention, tiny
from paw_fast.models.forward_check import check_forward, check_generation, tolerance_of
from paw_fast.models.policy import Policy, load_policy

VOCAB = 300
BASE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 1,
}  # fmt: skip
PHI = BASE | {"attention_dropout": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4}
OPT = {
    "vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "word_embed_proj_dim": 32, "dropout": 0.3, "attention_dropout": 0.3,
}  # fmt: skip


def build(kind, settings, dtype=torch.float32):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=packed_attention.ATTENTION_NAME
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.train_tokenizer(["go to desk 1 look"] * 20, 300)


@pytest.fixture
def save(tmp_path, tokenizer):
    def make(model):
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def hidden(policy, seed=0):
    ids = torch.randint(5, 200, (30,), generator=torch.Generator().manual_seed(seed))
    return policy.hidden(ids, torch.cat([torch.arange(10), torch.arange(20)]), (10, 20))


def test_the_check_has_no_side_effects():
    policy = Policy(build("llama", BASE), None)
    weights = copy.deepcopy(policy.model.state_dict())
    state = torch.random.get_rng_state()
    assert check_forward(policy, "x") < 1e-5
    assert check_generation(policy, "x") < 1e-5
    assert torch.equal(torch.random.get_rng_state(), state)
    assert policy.model.config._attn_implementation == packed_attention.ATTENTION_NAME
    assert all(torch.equal(weights[name], value) for name, value in policy.model.state_dict().items())
    assert all(p.grad is None for p in policy.model.parameters())
    assert not any(m._forward_pre_hooks for m in policy.model.modules())


def test_a_difference_is_an_error_with_the_value(monkeypatch):
    """An unknown factor on the logits, and a plan that ignores sequence boundaries."""
    policy = Policy(build("llama", BASE), None)
    real = policy.model.lm_head.forward
    monkeypatch.setattr(policy, "logits", lambda ids, at, plan: 1.5 * Policy.logits(policy, ids, at, plan))
    with pytest.raises(
        UserError, match=r"^--model x \(llama\): .* nats per token \(maximum .*tolerance 0.001 in float32"
    ):
        check_forward(policy, "x")
    assert policy.model.lm_head.forward == real
    policy = Policy(build("llama", BASE), None)
    attend = packed_attention.PackedPlan.attend
    with monkeypatch.context() as patch:
        patch.setattr(
            packed_attention.PackedPlan, "attend",
            lambda self, layer, q, k, v, s: attend(packed_attention.PackedPlan((q.shape[2],)), layer, q, k, v, s),
        )  # fmt: skip
        with pytest.raises(UserError, match="differs from the standard one"):
            check_forward(policy, "x")
    check_forward(policy, "x")


@pytest.mark.parametrize("missing", ["window", "softcap", "sinks"])
def test_a_missing_feature_is_detected(monkeypatch, missing):
    settings = BASE | {"head_dim": 8, "sliding_window": 8}
    kind = "gemma2"
    if missing == "sinks":
        kind, settings = "gpt_oss", settings | {"num_local_experts": 2, "num_experts_per_tok": 1}
        settings |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    elif missing == "softcap":
        settings |= {"attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 1}
    model = build(kind, settings)
    if missing == "sinks":
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.sinks.fill_(3.0)
    policy = Policy(model, None)
    assert check_forward(policy, "x") < 1e-5
    real = packed_attention.AttentionParams

    def without(scale, window, softcap, sinks):
        return real(scale, **({"window": window, "softcap": softcap, "sinks": sinks} | {missing: None}))

    monkeypatch.setattr(packed_attention, "AttentionParams", without)
    with pytest.raises(UserError, match="differs"):
        check_forward(policy, "x")


def test_a_wrong_cache_is_detected(monkeypatch):
    """All layers share the keys and values of one layer."""
    policy = Policy(build("llama", BASE), None)
    write = packed_attention.SlotCache.write
    monkeypatch.setattr(packed_attention.SlotCache, "write", lambda self, layer, s, p, k, v: write(self, 0, s, p, k, v))
    with pytest.raises(UserError, match="generation from cached keys and values differs"):
        check_generation(policy, "x")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.3), (torch.float16, 0.05)])
def test_tolerances_depend_on_the_dtype(dtype, tolerance):
    policy = Policy(build("llama", BASE, dtype), None)
    assert tolerance_of(policy.model) == tolerance
    assert check_forward(policy, "x") < tolerance
    experts = BASE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    assert tolerance_of(build("qwen3_moe", experts, dtype)) > tolerance


def test_weights_that_are_not_finite_are_an_error(save):
    model = build("llama", BASE)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError, match=r"the parameter model\.norm\.weight contains NaN or infinite values"):
        load_policy(save(model), ModelConfig(device="cpu"))


def test_a_forward_pass_that_overflows_is_named(save):
    model = build("llama", BASE)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    with pytest.raises(UserError, match="not finite; the weights are damaged"):
        check_forward(Policy(model, None), "x")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("lfm2", BASE | {"layer_types": ["conv", "full_attention"]}, "type lfm2 .*Lfm2ShortConv passes a state"),
        (
            "mamba",
            {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
            "MambaMixer passes a state",
        ),
        ("bloom", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}, r"\(bloom\): layers 0, 1 of 2"),
        (
            "falcon",
            {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
            "attention interface",
        ),
    ],
)
def test_loading_rejects_models_that_cannot_be_packed(kind, settings, message, tmp_path, tokenizer):
    config = transformers.AutoConfig.for_model(kind, **settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match=message) as caught:
        load_policy(tmp_path / "m", ModelConfig(device="cpu"))
    assert "\n" not in str(caught.value)


def test_encoder_decoder_models_are_rejected():
    model = build("llama", BASE)
    model.config.is_encoder_decoder = True
    with pytest.raises(UserError, match="encoder-decoder"):
        check_forward(Policy(model, None), "x")


# ---------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("kind", "settings"), [("phi", PHI), ("gpt2", GPT2), ("opt", OPT)])
def test_all_passes_are_equal_with_dropout_in_the_config(kind, settings, checkpointing, save, capsys):
    path = save(build(kind, settings))
    policy = load_policy(path, ModelConfig(device="cpu", gradient_checkpointing=checkpointing))
    assert "dropout is disabled" in capsys.readouterr().err
    first, second = hidden(policy), hidden(policy)
    assert first.requires_grad
    assert torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(hidden(policy), first)
    policy.model.train()
    assert torch.equal(hidden(policy), first)
    rates = {name: value for name, value in settings.items() if "drop" in name}
    assert rates.items() <= policy.model.config.to_dict().items()  # the config, and so checkpoints, keep the rates


def test_reference_critic_and_engine_have_no_dropout(save, tokenizer):
    from paw_fast.config import CriticConfig, OptimConfig
    from paw_fast.rollout.chat_format import ChatFormat
    from paw_fast.rollout.engines.transformers import TransformersEngine

    path = save(build("phi", PHI))
    reference = load_policy(path, ModelConfig(device="cpu"), trainable=False)
    assert not any(p.requires_grad for p in reference.model.parameters())
    policy = Policy(build("phi", PHI).train(), tokenizer)
    critic = SeparateCritic(policy, CriticConfig(), OptimConfig())
    for one in (reference, policy, critic.backbone):
        assert torch.equal(hidden(one), hidden(one))
    engine = TransformersEngine(build("phi", PHI).train(), ChatFormat(tokenizer), slots=1, max_length=64)
    assert not engine.model.training


def test_gradient_checkpointing_works_without_dropout(save):
    """The layers run again in the backward pass, and the gradients equal those without checkpointing."""
    path = save(build("phi", PHI))
    runs, gradients = [], []
    for checkpointing in (False, True):
        policy = load_policy(path, ModelConfig(device="cpu", gradient_checkpointing=checkpointing))
        count = []
        policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        hidden(policy).square().sum().backward()
        runs.append(len(count))
        gradients.append(policy.model.model.layers[0].mlp.fc1.weight.grad)
    assert runs == [1, 2]
    torch.testing.assert_close(*gradients)
