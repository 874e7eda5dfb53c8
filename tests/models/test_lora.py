"""LoRA adapters: gradients against PEFT's own forward pass, the reference, merged weights, checkpoints."""

import copy
import dataclasses

import pytest
import torch
import transformers

from paw_fast.config import LoraConfig, ModelConfig, load_preset
from paw_fast.errors import UserError
from paw_fast.kernels import POLICY, WORLD_MODEL, LossRows, LossSettings
from paw_fast.kernels.reference import paw_loss_reference
from paw_fast.learner.critic import SeparateCritic
from paw_fast.learner.forward_backward import backward, compute_token_stats
from paw_fast.learner.optim import MasterAdamW, trained_parameters
from paw_fast.learner.packing import PackedBatch
from paw_fast.models import tiny
from paw_fast.models.lora import add_adapters, has_adapters, merged_weights
from paw_fast.models.policy import BasePolicy, Policy, load_policy
from paw_fast.models.trained import load_reference
from paw_fast.rollout.engines.transformers import TransformersEngine
from paw_fast.rollout.weight_sync import SharedMemoryPublisher, named_weights
from paw_fast.runs.checkpoint import load_checkpoint, save_checkpoint

peft = pytest.importorskip("peft", reason="needs the extra lora")

VOCAB, LENGTHS = 90, (13, 20)
SETTINGS = LossSettings(clip_low=0.2, clip_high=0.2, dual_clip=3.0, kl_coef=0.1, entropy_coef=0.01, tau=0.5)


def make_model(tied=True, seed=1):
    model = tiny.build_model(VOCAB, hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, seed=seed)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    return model


def make_policy(dtype=torch.float32, tied=True, **settings):
    """A policy with adapters that are not zero."""
    model = make_model(tied).to(dtype)
    adapter = add_adapters(model, LoraConfig(rank=4, alpha=8.0, **settings), "m")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return Policy(model, None, adapter, "m")


def tokens(count=33):
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(3))


def make_rows(count, dtype=torch.float32):
    draw = torch.Generator().manual_seed(4)
    kinds = torch.where(torch.arange(count) % 3 == 0, WORLD_MODEL, POLICY).to(torch.uint8)
    return LossRows(
        torch.randint(0, VOCAB, (count,), generator=draw), kinds, torch.rand(count, generator=draw),
        old_logprobs=-4 - torch.rand(count, generator=draw), advantages=torch.randn(count, generator=draw),
        ref_logprobs=-4 - torch.rand(count, generator=draw),
    )  # fmt: skip


def make_batch(rows):
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    count = len(positions)
    return PackedBatch(
        members=(0, 1), input_ids=tokens(), position_ids=positions, lengths=LENGTHS,
        row_tokens=torch.arange(count), row_counts=LENGTHS, rows=rows, old_values=torch.zeros(count),
        value_targets=torch.zeros(count),
    )  # fmt: skip


@pytest.mark.parametrize(("tied", "head"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_pefts_eager_forward_in_float64(tied, head, checkpointing):
    policy = make_policy(tied=tied, head=head)
    exact = copy.deepcopy(policy.adapter).double()  # the whole PeftModel, called as its users do
    exact.set_attn_implementation("eager")
    if checkpointing:
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
        policy = Policy(policy.model, None, policy.adapter, "m")
    rows = make_rows(sum(LENGTHS))
    result = backward(policy, make_batch(rows), SETTINGS, chunk=11)
    logits = torch.cat([exact(input_ids=ids[None], use_cache=False).logits[0] for ids in tokens().split(LENGTHS)])
    expected = paw_loss_reference(logits, rows, SETTINGS)
    expected.loss.backward()
    torch.testing.assert_close(result.losses.double(), expected.losses, atol=1e-5, rtol=1e-4)
    gradients = dict(exact.get_base_model().named_parameters())
    seen = 0
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        assert gradients[name].grad.abs().max() > 1e-5
        torch.testing.assert_close(parameter.grad.double(), gradients[name].grad, atol=2e-6, rtol=2e-4)
        seen += 1
    assert seen == 2 * (2 * 7 + head)


def test_only_adapters_change_in_a_step():
    policy = make_policy()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    optimizer = MasterAdamW([{"params": trained_parameters(policy.model)}], lr=1e-2)
    backward(policy, make_batch(make_rows(sum(LENGTHS))), SETTINGS, chunk=100)
    optimizer.step()
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name)


def test_new_adapters_leave_the_policy_as_it_was_and_do_not_touch_the_random_state():
    plain, model = make_model(), make_model()
    state = torch.random.get_rng_state()
    add_adapters(model, LoraConfig(rank=4), "m", seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    ids = tokens(10)[None]
    for one in (plain, model):
        one.set_attn_implementation("eager")
    assert torch.equal(model(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)
    other = make_model()
    add_adapters(other, LoraConfig(rank=4), "m", seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("tied", "head"), [(True, False), (False, True)])
def test_the_reference_is_the_base_model(tied, head):
    policy = make_policy(tied=tied, head=head)
    config = dataclasses.replace(load_preset("tiny"), lora=LoraConfig(rank=4))
    config = dataclasses.replace(config, algo=dataclasses.replace(config.algo, kl_coef=0.1))
    reference = load_reference(config, "nowhere", policy)
    assert isinstance(reference, BasePolicy)
    assert reference.model is policy.model  # no second copy
    batch = make_batch(make_rows(sum(LENGTHS)))
    base = Policy(make_model(tied), None)
    for _ in range(2):
        trained = compute_token_stats(policy, batch, 1.0, 100)
        found, expected = compute_token_stats(reference, batch, 1.0, 100), compute_token_stats(base, batch, 1.0, 100)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert not torch.allclose(trained[0], found[0], atol=1e-3)
    assert len(trained_parameters(policy.model)) == 2 * (2 * 7 + head)  # they still learn


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize(("tied", "head"), [(True, False), (False, True)])
def test_merged_weights_are_those_of_a_plain_model(dtype, tolerance, tied, head):
    policy = make_policy(dtype, tied, head=head)
    plain = make_model(tied, seed=9).to(dtype)
    sent = dict(merged_weights(policy.model))
    targets = named_weights(plain)
    assert sent.keys() == targets.keys()
    assert {n: (t.shape, t.dtype) for n, t in sent.items()} == {n: (t.shape, t.dtype) for n, t in targets.items()}
    with torch.no_grad():
        for name, tensor in sent.items():
            targets[name].copy_(tensor)
    batch = make_batch(make_rows(sum(LENGTHS)))
    found, expected = (compute_token_stats(one, batch, 1.0, 100)[0] for one in (Policy(plain, None), policy))
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    if dtype == torch.float32:  # PEFT rounds B A to 16 bits before it adds it
        merged = copy.deepcopy(policy.adapter).merge_and_unload().state_dict()
        for name, tensor in sent.items():
            torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=1e-6)


def test_an_engine_with_weights_of_its_own_reads_merged_ones():
    class Chat:
        tokenizer, stop_ids = range(VOCAB), frozenset()

    policy, plain = make_policy(), make_model(seed=9).requires_grad_(False)
    publisher = SharedMemoryPublisher(policy.model)
    engine = TransformersEngine.__new__(TransformersEngine)
    engine.model, engine.source, engine._cached = plain, publisher.source(), []
    for version in (1, 2):
        publisher.publish(version)
        engine.update_weights(version)
        for name, tensor in merged_weights(policy.model):
            assert torch.equal(plain.state_dict()[name], tensor)
        with torch.no_grad():
            trained_parameters(policy.model)[1].add_(0.1)


def test_dropout_is_in_the_passes_of_the_update_alone():
    policy = make_policy(dropout=0.5)
    batch = make_batch(make_rows(sum(LENGTHS)))
    first, second = (compute_token_stats(policy, batch, 1.0, 100)[0] for _ in range(2))
    assert torch.equal(first, second)
    hidden = [policy.hidden(batch.input_ids, batch.position_ids, LENGTHS) for _ in range(2)]
    assert not torch.equal(*hidden)


def test_a_critic_of_its_own_shares_the_frozen_weights():
    from paw_fast.config import CriticConfig, OptimConfig

    policy = make_policy()
    critic = SeparateCritic(policy, CriticConfig(), OptimConfig())
    theirs, ours = (dict(one.named_parameters()) for one in (policy.model, critic.backbone.model))
    for name, parameter in theirs.items():
        assert (ours[name] is parameter) == ("lora_" not in name)
    state = copy.deepcopy(critic.state_dict())
    assert all("lora_" in name for name in state["backbone"])
    with torch.no_grad():
        for parameter in trained_parameters(critic.backbone.model):
            parameter.zero_()
    critic.load_state_dict(state)
    assert any(p.abs().max() > 0 for n, p in critic.backbone.model.named_parameters() if "lora_B" in n)


# ---------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A model folder with a tokenizer, as RUN/warm_start."""
    folder = tmp_path_factory.mktemp("run") / "warm_start"
    tokenizer = tiny.train_tokenizer(["go to desk 1", "take the apple 2 from shelf 3"] * 5, vocab_size=300)
    model = tiny.build_model(len(tokenizer), hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, seed=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(base_folder):
    policy = load_policy(base_folder, ModelConfig(device="cpu"), lora=LoraConfig(rank=4), seed=3)
    with torch.no_grad():
        for parameter in trained_parameters(policy.model):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    optimizer = MasterAdamW([{"params": trained_parameters(policy.model)}], lr=1e-2)
    path = save_checkpoint(
        base_folder.parent, 3, model=policy.saved_model, tokenizer=policy.tokenizer, optimizer=optimizer
    )
    return policy, path


def logits_of(model, attention="eager"):
    model.set_attn_implementation(attention)
    with torch.no_grad():
        return model(torch.arange(5, 40)[None], use_cache=False).logits


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, which is called here
def test_a_checkpoint_holds_the_adapter_in_pefts_format(checkpoint, base_folder, tmp_path):
    policy, path = checkpoint
    names = {one.name for one in path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not names & {"model.safetensors", "README.md"}
    assert load_checkpoint(path).step == 3  # the manifest knows the files
    expected = logits_of(policy.model)
    base = transformers.AutoModelForCausalLM.from_pretrained(base_folder)
    loaded = peft.PeftModel.from_pretrained(base, path)
    torch.testing.assert_close(logits_of(loaded), expected, atol=1e-6, rtol=1e-6)
    assert loaded.peft_config["default"].base_model_name_or_path == str(base_folder)
    assert not loaded.peft_config["default"].target_modules & {"lm_head"}
    automatic = peft.AutoPeftModelForCausalLM.from_pretrained(path)
    torch.testing.assert_close(logits_of(automatic), expected, atol=1e-6, rtol=1e-6)
    automatic.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged), expected, atol=2e-5, rtol=1e-5)
    policy.model.set_attn_implementation("paw_packed")


def test_a_checkpoint_is_loaded_merged_for_evaluation_and_exactly_for_training(checkpoint, base_folder):
    policy, path = checkpoint
    config = ModelConfig(device="cpu")
    merged = load_policy(path, config, trainable=False)
    assert not has_adapters(merged.model)
    for name, tensor in merged_weights(policy.model):
        torch.testing.assert_close(merged.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)
    again = load_policy(base_folder, config, lora=LoraConfig(rank=4), saved=path)
    for (name, a), (other, b) in zip(policy.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad


def test_a_moved_run_finds_its_base(checkpoint, base_folder, tmp_path):
    import json
    import shutil

    _, path = checkpoint
    moved = tmp_path / "moved"
    shutil.copytree(base_folder.parent, moved)
    config = moved / path.relative_to(base_folder.parent) / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "base_model_name_or_path": "/gone/warm_start"}))
    load_policy(config.parent, ModelConfig(device="cpu"), trainable=False)
    config.write_text(json.dumps({**values, "base_model_name_or_path": "/gone/elsewhere"}))
    with pytest.raises(UserError, match=r"the base model of the adapter in .* is not there: /gone/elsewhere"):
        load_policy(config.parent, ModelConfig(device="cpu"), trainable=False)


def test_what_is_refused(checkpoint, tmp_path):
    _, path = checkpoint
    with pytest.raises(UserError, match="is a LoRA adapter itself: merge it"):
        load_policy(path, ModelConfig(device="cpu"), lora=LoraConfig(rank=4))
    with pytest.raises(UserError, match="shares its weights with the input embedding"):
        make_policy(tied=True, head=True)
    experts = transformers.AutoModelForCausalLM.from_config(
        transformers.MixtralConfig(
            vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=2,
        )
    )  # fmt: skip
    with pytest.raises(UserError, match="its experts are no linear layers"):
        add_adapters(experts, LoraConfig(rank=4), "m")
