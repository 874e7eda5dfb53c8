"""Tests that the tiny model's tokenizer encodes names as single tokens."""

import pytest

from paw_fast.models import tiny

TEXTS = ["<information>Doc 1(Title: Anna Bell) Anna Bell was born in Rose Bay.</information>"] * 5 + [
    "Who is Annabel Roseland? Annabel Roseland, Annabel Roseland and Annabel Roseland of Rose Bay. Only Once Here."
] * 2


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.train_tokenizer(TEXTS, 300, r" [A-Z][a-z]+(?!\w)")


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]


def test_names_are_single_tokens_and_the_longest_match_wins(tokenizer):
    found = pieces(tokenizer, "by Anna Bell of Rose Bay and Annabel Roseland.")
    assert [p for p in found if p[:1] == " " and p[1:2].isupper()] == [
        " Anna", " Bell", " Rose", " Bay", " Annabel", " Roseland",
    ]  # fmt: skip


def test_rare_names_are_split(tokenizer):
    assert " Once" not in pieces(tokenizer, "Only Once Here.")


def test_any_text_round_trips(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for text in [*TEXTS, " Anna", "Anna", " Annas Rosebay", "Zoë 北京\n<answer> Bay </answer>"]:
            assert one.decode(one.encode(text, add_special_tokens=False)) == text
            assert one.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)


def test_without_names_nothing_changes():
    plain = tiny.train_tokenizer(TEXTS, 300)
    assert len(plain) <= 300
