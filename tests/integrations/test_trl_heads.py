"""The fused head inside the forward of several model families, against TRL's own, and what is refused."""

import pytest
import torch
import transformers

pytest.importorskip("trl", reason="needs the extra trl")
pytestmark = pytest.mark.filterwarnings("default")

from trl.trainer.utils import add_fused_lm_head  # noqa: E402

from paw_fast.errors import UserError  # noqa: E402
from paw_fast.integrations.trl.lm_head import add_paw_head  # noqa: E402
from paw_fast.integrations.trl.settings import check_model  # noqa: E402
from paw_fast.kernels import LossSettings  # noqa: E402

SMALL = {
    "vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "gemma2": (transformers.Gemma2Config, {"final_logit_softcapping": 2.0}),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 0.25}),
    "cohere": (transformers.CohereConfig, {"logit_scale": 4.0}),
}


def build(name):
    kind, more = FAMILIES[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**SMALL, **more, initializer_range=0.5))
    return model.float().train()


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_entropies_and_gradients_are_those_of_trl(name):
    model, other = build(name), build(name)
    add_fused_lm_head(other, temperature=0.7, outputs=("log_probs", "entropy"))
    add_paw_head(model, 0.7, LossSettings())
    ids = torch.randint(2, 37, (3, 9))
    attention = torch.ones_like(ids)
    attention[0, :2] = 0
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    labels = torch.full_like(ids, -100)
    labels[:, -4:] = ids[:, -4:].masked_fill(~mask, -100)
    expected = other(input_ids=ids, attention_mask=attention, labels=labels, fused_lm_head=True)
    found = model(input_ids=ids, attention_mask=attention, paw_mask=mask)
    torch.testing.assert_close(found.log_probs, expected.log_probs[:, -4:])
    torch.testing.assert_close(found.entropy, expected.entropy[:, -4:])
    for out in (found.log_probs, expected.log_probs[:, -4:]), (found.entropy, expected.entropy[:, -4:]):
        for one in out:
            (one**2).sum().backward(retain_graph=True)
    largest = max(float(p.grad.abs().max()) for p in other.parameters())
    for (key, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-5 * largest, msg=lambda m, k=key: k + m)


@pytest.mark.parametrize("name", FAMILIES)
def test_world_model_loss_is_that_of_the_models_own_logits(name):
    model = build(name)
    ids = torch.randint(2, 37, (2, 9))
    weights = torch.tensor([[0.0, 0.5, 0.5, 0], [2.0, 0, 0, 0]])
    logprobs = model(input_ids=ids).logits.double()[:, -5:-1].log_softmax(-1).gather(-1, ids[:, -4:, None])[..., 0]
    expected = (weights * (1 - logprobs.exp().clamp(max=0.2))).sum()
    add_paw_head(model, 0.7, LossSettings(tau=0.2))  # the temperature is the policy's
    found = model(input_ids=ids, paw_mask=weights == 0, wm_weights=weights)
    assert float(found.wm_loss) == pytest.approx(float(expected), abs=1e-5)
    assert (float(found.wm_rows), float(found.wm_saturated)) == (
        3,
        float(((weights != 0) & (logprobs.exp() >= 0.2)).sum()),
    )
    assert float(found.wm_error) == pytest.approx(float((1 - logprobs.exp())[weights != 0].sum()), abs=1e-5)


def test_a_batch_without_any_row_has_a_gradient_of_zero():
    model = build("llama")
    add_paw_head(model, 1.0, LossSettings())
    ids = torch.randint(2, 37, (2, 6))
    out = model(input_ids=ids, paw_mask=torch.zeros(2, 3).bool(), wm_weights=torch.zeros(2, 3))
    (out.log_probs.sum() + out.wm_loss).backward()
    assert float(out.wm_loss) == 0
    assert all(float(p.grad.abs().sum()) == 0 for p in model.parameters() if p.grad is not None)


def test_float32_head_and_other_calls_stay():
    model = build("llama").bfloat16()
    before = model(input_ids=torch.arange(5)[None]).logits
    add_paw_head(model, 1.0, LossSettings(), float32=True)
    assert torch.equal(model(input_ids=torch.arange(5)[None]).logits, before)
    out = model(input_ids=torch.arange(5)[None], paw_mask=torch.ones(1, 4).bool())
    assert out.log_probs.dtype == torch.float32
    hidden = model.model(input_ids=torch.arange(5)[None]).last_hidden_state[0, :-1].float()
    expected = (hidden @ model.lm_head.weight.float().T).log_softmax(-1)[range(4), range(1, 5)]
    torch.testing.assert_close(out.log_probs[0], expected)


def test_models_are_refused_by_name():
    model = build("llama")
    with pytest.raises(UserError, match="multimodal models are not supported"):
        check_model(model, True, False)
    with pytest.raises(UserError, match=r"router_aux_loss_coef=0\.0"):
        check_model(model, False, True)
    model.config.lm_head_multiplier = 0.5
    with pytest.raises(UserError, match="llama models scale their logits"):
        check_model(model, False, False)
