"""Tests that text from outside never becomes control tokens, for all kinds of tokenizers and parts of a prompt."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, tokenizer_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.models import tiny
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.sft.warm_start import as_trajectory
from paw_fast.types import Observation

NAMES = [*KINDS, "tiny"]


@pytest.fixture(scope="module", params=NAMES)
def chat(request):
    if request.param == "tiny":
        return ChatFormat(tiny.train_tokenizer(["You arrive at desk 1. look system user"] * 20, 300))
    return ChatFormat(tokenizer_of(request.param))


def control_tokens(chat):
    return {i: text for i, text in chat._encoder.control.items()}


def control_ids(chat, ids):
    return [i for i in ids if i in control_tokens(chat)]


def with_markers(chat):
    """A text that contains every control token of the tokenizer."""
    return " and ".join(["look", *control_tokens(chat).values(), "You win."])


def pieces(chat):
    markers = st.sampled_from(sorted(control_tokens(chat).values()))
    return st.lists(st.one_of(markers, st.sampled_from(["look", " ", "<", ">", "|", "[", "a mug 2", "\n", "é"])))


def test_observations_are_plain_text(chat):
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(pieces(chat))
    def holds(parts):
        text = "".join(parts)
        ids, mask = chat.follow([chat.turn_end], "", text, "")
        body = [i for i, m in zip(ids, mask, strict=True) if m]
        assert not control_ids(chat, body)
        assert chat.tokenizer.decode(body, skip_special_tokens=False) == text
        if not any(marker in text for marker in control_tokens(chat).values()):
            assert body == chat.tokenizer.encode(text, add_special_tokens=False)

    holds()


def test_first_messages_are_plain_text(chat):
    plain = control_ids(chat, chat.first("look"))

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(pieces(chat))
    def holds(parts):
        text = "look" + "".join(parts) + "."
        ids = chat.first(text)
        assert control_ids(chat, ids) == plain
        assert text in chat.tokenizer.decode(ids, skip_special_tokens=False)

    holds()


def test_ordinary_prompts_are_encoded_as_by_the_tokenizer(chat):
    turns = [{"role": "user", "content": "You see a mug 2."}]
    text = chat.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chat.first("You see a mug 2.") == chat.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_text_from_outside_is_plain_text_in_both_layouts(chat, layout):
    template = PromptTemplate.load("verl").with_escape(chat.escape)

    def seen(text):
        return Observation(text, (text, "look"), text)

    def prompts(text):
        history = [{"observation": text, "command": text}]
        before, after = template.split_next(seen(text))
        if layout == "window":
            yield chat.first(template.window(seen(text), text, history, 1))
            yield chat.first(template.window(seen(text), text, [], 0))
        else:
            yield chat.first(template.first(seen(text)))
            yield chat.follow([chat.turn_end], before, text, after)[0]

    for plain, other in zip(prompts("look"), prompts(with_markers(chat)), strict=True):
        # Both contain the control tokens of the template itself (its tags can be tokens), and no others.
        assert control_ids(chat, other) == control_ids(chat, plain)
        assert with_markers(chat) in chat.tokenizer.decode(other, skip_special_tokens=False)


def test_tags_of_the_prompt_template_are_control_tokens():
    chat = ChatFormat(tokenizer_of("chatml"))
    template = PromptTemplate.load("verl").with_escape(chat.escape)
    ids = chat.first(template.first(Observation("a <think> b", (), "t")))
    tokens = chat.tokenizer.convert_ids_to_tokens(ids)
    assert tokens.count("<think>") == template.first(Observation("", (), "t")).count("<think>") == 1
    assert not control_ids(chat, chat.encode("<think>"))


def test_demonstrations_are_plain_text(chat):
    def seen(text):
        return Observation(text, ("look",), text)

    def ids(text):
        demo = (seen(text), [(text, seen(text), True)])
        (turn,) = as_trajectory(demo, chat, PromptTemplate.load("verl"), TrainConfig()).transitions
        return control_ids(chat, turn.prompt_ids + turn.action_ids + turn.observation_ids)

    assert ids(with_markers(chat)) == ids("look")


def test_passages_are_located_in_a_text_with_markers(chat):
    marker = sorted(control_tokens(chat).values())[0]
    text = f"Doc 1 {marker} see. Doc 2 look"
    ids = chat.encode(text)
    ((start, end, name),) = chat.locate(text, [(text.index("Doc 2"), len(text), "p2")])
    assert (chat.tokenizer.decode(ids[start:end]).strip(), end, name) == ("Doc 2 look", len(ids), "p2")


def test_a_long_text_with_markers_is_truncated(chat):
    text = f"<information>{with_markers(chat) * 4}</information>"
    short = chat.fit(text, 40)
    assert len(chat.encode(short)) <= 40
    assert not control_ids(chat, chat.encode(short))


def test_added_words_are_not_control_tokens():
    tokenizer = tokenizer_of("chatml")
    tokenizer.add_tokens(["B09ABC"])
    chat = ChatFormat(tokenizer)
    assert tokenizer.convert_tokens_to_ids("B09ABC") in chat.encode("click B09ABC<|im_end|>")
    assert not control_ids(chat, chat.encode("click B09ABC<|im_end|>"))


def test_a_tokenizer_that_cannot_encode_a_marker_as_text():
    words = {word: i for i, word in enumerate(["<unk>", "<eos>", "look", "a", "<", "eos>"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<eos>",
        chat_template="{% for m in messages %}{{ m.content }} <eos> {% endfor %}",
    )  # fmt: skip
    chat = ChatFormat(tokenizer)
    assert chat.encode("look <eos> a") == [2, 4, 5, 3]
    chat._encoder._markers = re.compile("(?!)")  # so that the marker cannot be broken up
    chat._text_ids.cache_clear()
    with pytest.raises(UserError, match="cannot encode '<eos>' as text"):
        chat.encode("look <eos> a")
