"""Small tokenizers with the kinds of chat templates that published models have."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["go to desk 1 and look. You are in a room, you see: a mug 2. user assistant system model"] * 20

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>"
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{% if loop.last and not add_generation_prompt %}"
    "<|return|>{% else %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HEADERS_ONLY = (  # no end token: the next header follows the answer
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

KINDS = {
    "chatml": (CHATML, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"), ("<think>", "</think>", "<tool_call>")),
    "llama3": (LLAMA3, "<|end_of_text|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ()),
    "gemma": (GEMMA, "<eos>", ("<start_of_turn>", "<end_of_turn>"), ()),
    "mistral": (MISTRAL, "</s>", ("[INST]", "[/INST]"), ()),
    "deepseek-r1": (DEEPSEEK_R1, "<｜end▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>"), ("<think>", "</think>")),
    "gpt-oss": (GPT_OSS, "<|return|>", ("<|start|>", "<|end|>", "<|message|>", "<|channel|>"), ()),
    "headers-only": (HEADERS_ONLY, "<eos>", ("<|user|>", "<|assistant|>"), ()),
}  # fmt: skip
"""Chat template, eos token, special tokens, and added tokens that are not marked as special."""


def tokenizer_of(kind):
    """Returns a byte-level BPE tokenizer of a kind. That of gemma encodes spaces like SentencePiece."""
    template, eos, special, added = KINDS[kind]
    core = Tokenizer(models.BPE(byte_fallback=kind == "gemma", unk_token="<unk>" if kind == "gemma" else None))
    if kind == "gemma":
        core.normalizer = normalizers.Replace(" ", "▁")
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )  # fmt: skip
        alphabet = [*map(chr, range(33, 127)), "▁", "\n"]
        extra = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(
            vocab_size=700, initial_alphabet=alphabet, special_tokens=extra, show_progress=False
        )
        core.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
        state = json.loads(core.to_str())
        state["added_tokens"] = []  # byte tokens belong to the model, as in published tokenizers
        core = Tokenizer.from_str(json.dumps(state))
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        core.train_from_iterator(
            TEXTS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
        )
    core.add_special_tokens([AddedToken(text, special=True) for text in ("<pad>", "<bos>", eos, *special)])
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token=eos, chat_template=template,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
