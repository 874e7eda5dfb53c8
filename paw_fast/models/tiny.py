"""The `tiny` model: a small Llama with a tokenizer trained on the environment's own text.

Small enough to learn on two cores, and in Hugging Face format, so that everything else treats it as any model.
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
    texts: Iterable[str], vocab_size: int = 1024, more_names: str = "", more_texts: Iterable[str] = ()
) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for formulaic text, with a chat template of one token a role.

    Names of things (words that some text puts before a number, as in "cabinet 2") and numbers stay tokens of
    their own, so that the model can copy them; the phrases between them merge freely across spaces. An ALFWorld
    episode takes about a third fewer tokens so than with merges inside words only. `more_names` is a regular
    expression for other names, with what must stand around them: the `MAX_NAMES` most frequent matches are tokens
    beside the `vocab_size` others, however rare their letters are; they are counted in `more_texts` as well.
    """
    texts = list(texts)
    names = sorted({name for text in texts for name in re.findall(r"([a-z]{2,}) \d", text)}, key=lambda n: (-len(n), n))
    pieces = r" ?\d+"
    if names:
        pieces += rf"|[ ]?(?<![a-z])(?:{'|'.join(names)})(?![a-z])"
    more: list[str] = []
    if more_names:
        counted = chain(texts, more_texts)
        words = Counter(word for text in counted for word in re.findall(more_names, text))
        more = sorted(word for word, count in words.most_common(MAX_NAMES) if count >= MIN_COUNT)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    # The longer of two names first, where one begins with the other.
    apart = map(re.escape, sorted(more, key=len, reverse=True))
    tokenizer.pre_tokenizer = _splitter("|".join([*apart, pieces]))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    # A word without its space must not be cut out of a longer one.
    whole = [word.replace("-", "").isalpha() for word in more]
    tokenizer.add_tokens(
        [
            tokenizers.AddedToken(word, normalized=False, single_word=alone)
            for word, alone in zip(more, whole, strict=True)
        ]
    )
    # Added tokens are cut out of a text before it is split: a thousand alternatives less to try at every character.
    tokenizer.pre_tokenizer = _splitter(pieces)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _splitter(pieces: str) -> pre_tokenizers.Sequence:
    """Keeps what the regular expression `pieces` finds apart from the text around it."""
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
    """A randomly initialised Llama with tied embeddings; about 2 million parameters by default.

    Wide and shallow, with larger initial weights than usual, learns soonest to copy names out of the episode,
    which is most of what a searcher does.

    With `copying` it begins as a copier: the values and the output of the last layer's attention hold the identity, so
    that a token looked at becomes more likely whichever it is, and what the layers add starts small beside the
    embeddings, so that the last layer still sees which token stands where. Every head then has keys of its own.
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
        _begin_copying(model)
    model.set_attn_implementation(packed_attention.ATTENTION_NAME)
    return model


@torch.no_grad()
def _begin_copying(model: transformers.LlamaForCausalLM) -> None:
    """Identities instead of most of the random weights, after Trockman and Kolter, Mimetic Initialization of
    Self-Attention Layers, 2023; the scales are ours, found by trial."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_(0.05)
    last = f"model.layers.{model.config.num_hidden_layers - 1}.self_attn."
    values, output = weights[last + "v_proj.weight"], weights[last + "o_proj.weight"]
    values.mul_(0.3).add_(torch.eye(len(values)))
    output.add_(0.5 * torch.eye(len(output)))
