"""The loss on text of no environment: against a plain forward pass, and files that cannot be measured."""

import copy
import dataclasses

import pytest
import torch

from paw_fast.config import load_preset
from paw_fast.errors import UserError
from paw_fast.evaluation.held_out_text import measure_text_loss, read_text, text_loss
from paw_fast.models import tiny
from paw_fast.models.policy import Policy

TEXT = "The old ferry crossed the bay twice a day, and naïve people 谁 rang the bell."


@pytest.fixture(scope="module")
def policy():
    tokenizer = tiny.train_tokenizer([TEXT] * 5, 300)
    return Policy(tiny.build_model(len(tokenizer), hidden=32, layers=2, heads=2, kv_heads=1, ffn=64, seed=3), tokenizer)


@pytest.mark.parametrize("window", [512, 7])
@pytest.mark.parametrize("token_budget", [16, 4096])
def test_the_loss_is_that_of_a_plain_forward_pass(policy, window, token_budget):
    ids = policy.tokenizer.encode(TEXT, add_special_tokens=False)
    losses, plain = [], copy.deepcopy(policy.model)
    plain.set_attn_implementation("eager")
    for start in range(0, len(ids), window):
        part = torch.tensor([ids[start : start + window]])
        if part.shape[1] > 1:
            with torch.no_grad():
                rows = torch.log_softmax(plain(part).logits[0].double(), -1)
            losses += [-float(rows[i, part[0, i + 1]]) for i in range(part.shape[1] - 1)]
    got = measure_text_loss(policy, TEXT, token_budget=token_budget, chunk=5, window=window)
    assert got == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_the_default_is_a_page_of_prose_of_the_package(policy):
    text = read_text(None)
    assert 500 < len(text.split()) < 1000
    config = load_preset("tiny")
    assert text_loss(policy, config, 64) == pytest.approx(
        measure_text_loss(policy, text, token_budget=8192, chunk=64), abs=1e-6
    )


def test_a_file_of_ones_own(policy, tmp_path):
    path = tmp_path / "page.txt"
    path.write_text(TEXT, encoding="utf-8-sig")
    config = dataclasses.replace(load_preset("tiny"), eval_text=path)
    assert text_loss(policy, config, 64) == pytest.approx(
        measure_text_loss(policy, TEXT, token_budget=99, chunk=9), abs=1e-6
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfea", "byte 0 is not UTF-8")],
)
def test_files_that_cannot_be_measured(tmp_path, content, message):
    path = tmp_path / "page.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"--eval-text {path}.*{message}"):
        read_text(path)
    with pytest.raises(UserError, match="not a file"):
        read_text(tmp_path)


def test_one_token_is_no_text(policy):
    with pytest.raises(UserError, match="1 tokens, expected 2 or more"):
        measure_text_loss(policy, "T", token_budget=9, chunk=9)
