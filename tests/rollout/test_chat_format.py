"""Tests of the chat format: prompts extend each other exactly and equal the output of the chat template."""

import datetime
import types

import pytest
from tokenizer_kinds import tokenizer_of

from paw_fast.errors import UserError
from paw_fast.models import tiny
from paw_fast.models.packed_attention import ATTENTION_NAME
from paw_fast.models.policy import Policy
from paw_fast.rollout.chat_format import ChatFormat, declared_stop_ids, with_date
from paw_fast.rollout.engines.base import ActionRequest
from paw_fast.rollout.factory import make_chat, make_engine
from paw_fast.rollout.prompts import parse_action


def test_a_conversation_equals_the_chat_template(chat, tokenizer):
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
def test_cached_ids_equal_those_of_the_tokenizer_and_are_copies(chat, tokenizer, text):
    expected = tokenizer.encode(text, add_special_tokens=False)
    first = chat.encode(text)
    assert first == expected
    first.append(7)
    assert chat.encode(text) == expected


def test_an_end_token_is_added_after_a_truncated_action(chat, tokenizer):
    cut = chat.encode("look")
    ids, _ = chat.follow(cut, "", "x", "")
    assert ids[0] == tokenizer.eos_token_id
    ended, _ = chat.follow([*cut, tokenizer.eos_token_id], "", "x", "")
    assert ids[1:] == ended


def test_the_mask_covers_only_the_observation(chat, tokenizer):
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


def test_a_missing_chat_template_is_a_user_error(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ChatFormat(other)


# ------------------------------------------------------------------------------------------------ end tokens


@pytest.mark.parametrize(
    ("kind", "stops", "end"),
    [
        ("chatml", {"<|im_end|>"}, "<|im_end|>"),
        ("llama3", {"<|end_of_text|>", "<|eot_id|>"}, "<|eot_id|>"),
        ("gemma", {"<eos>", "<end_of_turn>"}, "<end_of_turn>"),
        ("mistral", {"</s>"}, "</s>"),
        ("deepseek-r1", {"<｜end▁of▁sentence｜>"}, "<｜end▁of▁sentence｜>"),
        ("gpt-oss", {"<|return|>", "<|end|>"}, "<|end|>"),
        ("headers-only", {"<eos>", "<|user|>"}, "<eos>"),
    ],
)
def test_stop_ids_are_those_of_tokenizer_and_template(kind, stops, end):
    tokenizer = tokenizer_of(kind)
    chat = ChatFormat(tokenizer)
    assert set(tokenizer.convert_ids_to_tokens(sorted(chat.stop_ids))) == stops
    assert tokenizer.convert_ids_to_tokens(chat.turn_end) == end


@pytest.mark.parametrize("kind", ["chatml", "llama3", "gemma", "mistral", "deepseek-r1", "gpt-oss", "headers-only"])
def test_a_sampled_end_token_is_not_repeated(kind):
    """The conversation equals the template's, with the sampled end token in place of the template's."""
    tokenizer = tokenizer_of(kind)
    declared = tokenizer.convert_tokens_to_ids("<pad>")  # an end token declared only in the generation config
    chat = ChatFormat(tokenizer, (declared,))
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "look"},
        {"role": "user", "content": "seen"},
    ]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    cut, _ = chat.follow(chat.encode("look"), "", "seen", "")
    glue = tokenizer.decode(cut)
    assert expected.replace("final<|message|>", "").replace("<|channel|>", "").endswith("look" + glue)
    template_end = tokenizer.convert_ids_to_tokens(chat.turn_end)
    for end in chat.stop_ids - set(tokenizer.convert_tokens_to_ids(["<|user|>"])):
        ids, _ = chat.follow([*chat.encode("look"), end], "", "seen", "")
        after = glue.split(template_end, 1)[1] if template_end in glue else glue
        assert tokenizer.decode(ids) == after
    if kind == "headers-only":  # the policy sampled the next header itself
        header = tokenizer.convert_tokens_to_ids("<|user|>")
        assert tokenizer.decode(chat.follow([header], "", "seen", "")[0]) == "seen<|assistant|>"


def test_declared_stop_ids():
    declared = lambda value: declared_stop_ids(types.SimpleNamespace(eos_token_id=value))  # noqa: E731
    assert (declared(None), declared(7), declared([1, 106])) == ((), (7,), (1, 106))
    assert declared_stop_ids(None) == ()


@pytest.mark.parametrize("declared_by", ["template", "generation config"])
def test_end_tokens_other_than_eos_end_an_action(declared_by, small_config):
    """With a model that always samples this token, which the chat template or the generation config declares."""
    import torch

    tokenizer = tokenizer_of("gemma")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>" if declared_by == "template" else "<pad>")
    model = tiny.build_model(len(tokenizer), hidden=32, layers=1, heads=2, kv_heads=1, ffn=32).eval()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(len(tokenizer), 32))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_() if "layers" in name and "norm" not in name else parameter.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[end] = 2.0
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    model.set_attn_implementation(ATTENTION_NAME)
    engine = make_engine(Policy(model, tokenizer), small_config())
    engine.submit(ActionRequest(0, engine.chat.first("go"), (0,), 16, 1.0))
    done = []
    while not done:
        done = engine.step()
    assert (done[0].action_ids, done[0].stopped) == ((end,), True)


# ------------------------------------------------------------------------------------------------ thoughts and tags


def test_answers_to_a_template_that_opens_the_thought():
    chat = ChatFormat(tokenizer_of("deepseek-r1"))
    assert chat.thought_opened
    for style, answer in (
        ("think_action", "I see a desk.</think>\n<action>go to desk 1</action>"),
        ("think_search", "Who was it?</think>\n<search>Ada Lovelace</search>"),
        ("action", "I see a desk.</think>\n\nGo to desk 1"),
    ):
        parsed = parse_action(answer, style, chat.thought_opened)
        assert parsed.well_formed
        assert parsed.command in ("go to desk 1", "search[Ada Lovelace]")
    assert not parse_action("never closed <action>look</action>", "think_action", True).well_formed
    assert not parse_action("I see.</think><action>look</action>", "think_action", False).well_formed
    assert [ChatFormat(tokenizer_of(kind)).thought_opened for kind in ("chatml", "llama3")] == [False, False]


def test_tags_can_be_special_tokens():
    tokenizer = tiny.train_tokenizer(["go to desk 1 look"] * 20, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<action>", "</action>"]})
    chat, text = ChatFormat(tokenizer), "<think>a desk</think><action>look</action>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert chat.decode(ids) == chat.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id]) == text
    assert parse_action(chat.decode(ids), "think_action").well_formed
    assert chat.ends_action(ids, ("</action>",))
    assert not chat.ends_action(ids[:-1], ("</action>",))


def test_control_tokens_inside_a_command_are_kept(chat, tokenizer):
    ids = [*chat.encode("lo"), tokenizer.convert_tokens_to_ids("<|user|>"), *chat.encode("ok"), tokenizer.eos_token_id]
    assert parse_action(chat.decode(ids), "action").command == "lo<|user|>ok"


# ------------------------------------------------------------------------------------------------ the date

LLAMA_32 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}{{- 'Today Date: ' + date_string + '<|end|>' }}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_the_chat_template_gets_the_given_date(tokenizer):
    import copy

    dated = copy.deepcopy(tokenizer)
    dated.chat_template = LLAMA_32
    assert dated.decode(ChatFormat(dated, date="2026-03-05").first("a")).startswith("Today Date: 05 Mar 2026<|end|>")
    today = dated.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    assert dated.decode(ChatFormat(dated).first("a")) == today


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%-d %B", "100%% %A", "%H:%M %p", "%j %y"])
def test_date_formats(form, tokenizer):
    import copy

    dated, day = copy.deepcopy(tokenizer), datetime.date(2026, 3, 5)
    dated.chat_template = with_date(f"{{{{ strftime_now({form!r}) }}}}", day)
    assert dated.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == day.strftime(form)


def test_make_chat_uses_the_date_of_the_config(start, small_config):
    assert make_chat(start, small_config(chat_date="2026-03-05")).date == "2026-03-05"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('Only user and system roles are supported!') }}", "TemplateError: Only user and system"),
        ("{{ messages[7].content }}", "fails on a conversation of user, assistant, user: UndefinedError"),
        ("{% for m in messages %}", "fails on a conversation of user, assistant, user: TemplateSyntaxError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_chat_template_that_raises_is_a_user_error(tokenizer, template, message):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    with pytest.raises(UserError, match=message) as caught:
        ChatFormat(other)
    assert "\n" not in str(caught.value)


def test_a_chat_template_that_raises_later_is_a_user_error(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template + "{% if 'bad' in messages[0]['content'] %}{{ 1 // 0 }}{% endif %}"
    chat = ChatFormat(other)
    with pytest.raises(UserError, match=r"fails on a conversation of user: ZeroDivisionError"):
        chat.first("a bad message")
