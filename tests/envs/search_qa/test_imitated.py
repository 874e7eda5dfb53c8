"""What the tiny recipe imitates, and the model that does."""

import pytest
import torch
from search_extras import need

from paw_fast import envs
from paw_fast.config import WarmStartConfig
from paw_fast.envs.search_qa.synthetic_names import COUNTRIES, TRADES
from paw_fast.models import tiny
from paw_fast.sft.warm_start import demonstrate

need("bm25s", "Stemmer")


def answered_early(search_env, **settings):
    """Of the training episodes with questions of several hops, in order: whether each was answered too early."""
    config = WarmStartConfig(noop_prob=0.0, mistake_prob=0.0)
    expert = envs.make_expert("search", early_answer_prob=0.99, seed=1, **settings)
    tasks = [t for t in search_env.tasks("train") if t.task_type != "one_hop"]
    demos = demonstrate(search_env, expert, tasks, config, careful_expert=envs.make_expert("search"))
    assert len(demos) == len(tasks)
    last = [turns[-1][0] for _, turns in demos]
    return [command[7:-1] not in task.info["golden"] for command, task in zip(last, tasks, strict=True)]


def test_only_the_last_share_of_the_episodes_is_answered_early(search_env):
    late = answered_early(search_env, early_answer_share=0.25)
    careful = round(0.75 * len(late))
    assert not any(late[:careful])
    assert sum(late[careful:]) >= len(late) - careful - 1
    assert sum(answered_early(search_env)) >= len(late) - 3  # by default all are


def test_names_years_and_trades_are_one_token():
    text = " Anna Bell of Rose Bay in Morland, a baker, 1843 and 1999."
    tokenizer = tiny.train_tokenizer(["x"] * 3, 300, envs.make_expert("search").token_pattern, [text] * 3)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]
    for word in (" Anna", " Bell", " Rose", " Bay", " Morland", " baker", " 1843", " 1999"):
        assert word in pieces
    assert " Of" not in pieces


def test_every_trade_and_country_is_a_name():
    import re

    pattern = re.compile(envs.make_expert("search").token_pattern)
    assert all(pattern.fullmatch(f" {word}") for word in (*TRADES, *COUNTRIES, "Anna", "1801"))
    assert not any(pattern.fullmatch(f" {word}") for word in ("was", "in", "12", "18433", "bakers"))


@pytest.mark.parametrize("layers", [1, 3])
def test_a_copying_model_finds_likely_what_it_has_seen(layers):
    """Before any training, a token of the text is likelier than one that is not in it."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(400, generator=generator)[:8] for _ in range(50)])
    ranks = {}
    for copying in (False, True):
        model = tiny.build_model(400, layers=layers, copying=copying, seed=1)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            logits = model(ids).logits[:, -1]
        seen = logits.gather(1, ids[:, :-1])  # without the last token, which its own embedding makes likely
        ranks[copying] = (logits[:, :, None] > seen[:, None]).sum(1).float().mean() / 400
    assert ranks[True] < 0.1
    assert ranks[False] > 0.25
