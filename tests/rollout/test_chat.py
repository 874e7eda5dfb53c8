"""Chat glue: prompts continue one another exactly, and equal what the chat template itself gives."""

import pytest

from paw_fast.rollout.chat import ChatFormat
from paw_fast.types import UserError


def test_a_conversation_reads_as_the_template_writes_it(chat, tokenizer):
    action = [*chat.encode("look"), tokenizer.eos_token_id]
    ids, mask = chat.follow(action, "", "You see a mug 2.", "")
    whole = tokenizer.decode(chat.first("You arrive at cabinet 1.") + action + ids)
    turns = [
        {"role": "user", "content": "You arrive at cabinet 1."},
        {"role": "assistant", "content": "look"},
        {"role": "user", "content": "You see a mug 2."},
    ]
    assert whole == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "You see a mug 2."


@pytest.mark.parametrize("text", ["You see a mug 2.", "", "a b " * 400])
def test_ids_of_a_text_seen_before_are_the_tokenizer_s_and_the_caller_s_own(chat, tokenizer, text):
    expected = tokenizer.encode(text, add_special_tokens=False)
    first = chat.encode(text)
    assert first == expected
    first.append(7)
    assert chat.encode(text) == expected


def test_an_action_cut_short_gets_the_end_token_from_the_glue(chat, tokenizer):
    cut = chat.encode("look")
    ids, _ = chat.follow(cut, "", "x", "")
    assert ids[0] == tokenizer.eos_token_id
    ended, _ = chat.follow([*cut, tokenizer.eos_token_id], "", "x", "")
    assert ids[1:] == ended


def test_text_around_the_observation_is_not_a_target(chat, tokenizer):
    ids, mask = chat.follow([5], "Now: ", "a mug 2", " end.")
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "a mug 2"
    assert "Now: a mug 2 end." in tokenizer.decode(ids)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
    ],
)
def test_other_templates(tokenizer, template):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    other.add_special_tokens({"eos_token": "<|im_end|>"})
    chat = ChatFormat(other)
    action = [*chat.encode("look"), other.eos_token_id]
    ids, _ = chat.follow(action, "", "seen", "")
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "look"},
        {"role": "user", "content": "seen"},
    ]
    expected = other.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert other.decode(chat.first("a") + action + ids) == expected


def test_no_chat_template_is_one_clear_error(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ChatFormat(other)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('Only user and system roles are supported!') }}", "TemplateError: Only user and system"),
        ("{{ messages[7].content }}", "fails on a conversation of user, assistant, user: UndefinedError"),
        ("{% for m in messages %}", "fails on a conversation of user, assistant, user: TemplateSyntaxError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_chat_template_that_raises_is_one_line(tokenizer, template, message):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    with pytest.raises(UserError, match=message) as caught:
        ChatFormat(other)
    assert "\n" not in str(caught.value)


def test_a_chat_template_that_raises_on_a_message_is_one_line(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template + "{% if 'bad' in messages[0]['content'] %}{{ 1 // 0 }}{% endif %}"
    chat = ChatFormat(other)
    with pytest.raises(UserError, match=r"fails on a conversation of user: ZeroDivisionError"):
        chat.first("a bad message")
