"""Builds the `tiny` model: a small Llama, with a tokenizer trained on the text of the environment.

It can be trained on two CPU cores. It is in Hugging Face format, so other code treats it like any other model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from paw_fast.models import packed_attention

MAX_NAMES, MIN_COUNT = 1000, 3
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 1024, name_pattern: str = "", name_texts: Iterable[str] = ()
) -> transformers.PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer for formulaic text. Its chat template uses one token per role.

    Names of objects (words that occur before a number, as in "cabinet 2") and numbers are separate tokens, so that the
    model can copy them. The phrases between them are merged across spaces; compared to merges within words, an
    ALFWorld episode has about a third fewer tokens.

    Args:
        texts: the training texts.
        vocab_size: number of BPE tokens.
        name_pattern: regular expression for further names, including their context. The `MAX_NAMES` most frequent
            matches become tokens in addition to the `vocab_size` others.
        name_texts: further texts in which these names are counted.
    """
    texts = list(texts)
    names = sorted({name for text in texts for name in re.findall(r"([a-z]{2,}) \d", text)}, key=lambda n: (-len(n), n))
    pieces = r" ?\d+"
    if names:
        pieces += rf"|[ ]?(?<![a-z])(?:{'|'.join(names)})(?![a-z])"
    extra: list[str] = []
    if name_pattern:
        counted = chain(texts, name_texts)
        words = Counter(word for text in counted for word in re.findall(name_pattern, text))
        extra = sorted(word for word, count in words.most_common(MAX_NAMES) if count >= MIN_COUNT)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    # Longer names first, because one may be a prefix of another.
    escaped = map(re.escape, sorted(extra, key=len, reverse=True))
    tokenizer.pre_tokenizer = _splitter("|".join([*escaped, pieces]))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    # A name without a leading space must not match inside a longer word.
    whole = [word.replace("-", "").isalpha() for word in extra]
    tokenizer.add_tokens(
        [
            tokenizers.AddedToken(word, normalized=False, single_word=alone)
            for word, alone in zip(extra, whole, strict=True)
        ]
    )
    # Added tokens are split off before the pre-tokenizer runs, so the names are no longer needed in its (slow) pattern.
    tokenizer.pre_tokenizer = _splitter(pieces)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _splitter(pieces: str) -> pre_tokenizers.Sequence:
    """Pre-tokenizer that separates the matches of the regular expression `pieces` from the text around them."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def build_model(
    vocab_size: int, *, hidden: int = 256, layers: int = 2, heads: int = 8, kv_heads: int = 2, ffn: int = 1024,
    max_positions: int = 4096, seed: int = 0, copying: bool = False,
) -> transformers.LlamaForCausalLM:  # fmt: skip
    """Builds a randomly initialised Llama with tied embeddings, by default with about 2 million parameters.

    A wide and shallow model with larger initial weights than usual learns fastest to copy names from the episode, which
    is most of what an expert does.

    With `copying` the last attention layer is initialised to copy: its value and output projections contain the
    identity, so that attending to a token makes that token more likely. The contributions of all layers are small
    relative to the embeddings at first, so that the last layer can identify the tokens. Each head then has its own
    keys (`kv_heads` is ignored).
    """
    kv_heads = heads if copying else kv_heads
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=max_positions,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1, rms_norm_eps=1e-6,
        initializer_range=0.05,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    if copying:
        _init_copying(model)
    model.set_attn_implementation(packed_attention.ATTENTION_NAME)
    return model


@torch.no_grad()
def _init_copying(model: transformers.LlamaForCausalLM) -> None:
    """Initialises the model for copying, after Trockman and Kolter, Mimetic Initialization of Self-Attention Layers,
    2023. The scales were found by trial."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_(0.05)
    last = f"model.layers.{model.config.num_hidden_layers - 1}.self_attn."
    values, output = weights[last + "v_proj.weight"], weights[last + "o_proj.weight"]
    values.mul_(0.3).add_(torch.eye(len(values)))
    output.add_(0.5 * torch.eye(len(output)))
