"""Tests generated catalogues, and the WebShop expert on generated and official products."""

import json
import random

import pytest

from paw_fast import envs
from paw_fast.config import WarmStartConfig
from paw_fast.envs.webshop.expert import Shopper, parse_goal, read_results
from paw_fast.envs.webshop.generate import make_record, make_records
from paw_fast.envs.webshop.parsing import clean_product
from paw_fast.models import tiny
from paw_fast.sft import warm_start


@pytest.fixture(scope="session")
def generated(catalogue_cache):
    return envs.make("webshop", num_products=600, cache_dir=catalogue_cache)


def play(env, expert, task):
    observation = env.reset(task)
    expert.reset(observation)
    while True:
        step = env.step(expert.act(observation))
        observation = step.observation
        if step.done:
            return step


def test_catalogue_depends_only_on_the_seed():
    first, again, other = (list(make_records(50, seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len({record["asin"] for record, _ in make_records(1000, 0)}) == 1000
    assert [r["name"] for r, _ in make_records(20_000, 3)][:50] == [r["name"] for r, _ in first]
    for width in (4, 5, 6, 9):
        asins = [make_record(number, 0, width)[0]["asin"] for number in (5, 10**width - 1)]
        assert asins[0] != asins[1]
        assert all(len(asin) <= 10 for asin in asins)


def test_generated_records_are_valid_and_fit_their_instructions():
    for record, annotation in make_records(300, 1):
        product, readable = clean_product(record)
        assert readable
        assert len(annotation["attributes"]) == 3
        assert set(annotation["instruction_attributes"]) < set(annotation["attributes"])
        assert all(attribute in product.title for attribute in annotation["attributes"])
        assert min(len(values) for values in product.options.values()) >= 2
        assert json.loads(json.dumps(record)) == record


def test_buying_what_a_goal_was_made_from_wins(generated):
    goals = generated.catalogue.goals
    for number in random.Random(0).sample(range(len(goals)), 100):
        goal = goals[number]
        assert generated.catalogue.score_purchase(goal, goal.asin, goal.options).reward == 1.0


def test_unseen_goals_are_about_products_that_training_never_asks_for(generated):
    goals = generated.catalogue.goals
    unseen = {goals[t.info["goal"]].asin for t in generated.tasks("unseen")}
    train = {goals[t.info["goal"]].asin for t in generated.tasks("train")}
    assert len(generated.tasks("unseen")) == 500
    assert len(train) > 100
    assert not unseen & train


def test_no_language_model_is_needed(generated, monkeypatch):
    from paw_fast.envs.webshop import reward

    monkeypatch.setattr(reward, "_title_nouns", lambda title: pytest.fail(f"asked for the nouns of {title}"))
    assert play(generated.spawn(), Shopper(), generated.tasks("train")[0]).done


def test_expert_wins_unless_it_buys_early(generated):
    tasks = generated.tasks("train")[:120]
    won = {}
    for early_answer_prob in (0.0, 0.5, 1.0):
        env, expert = generated.spawn(), envs.make_expert("webshop", early_answer_prob=early_answer_prob, seed=1)
        won[early_answer_prob] = sum(play(env, expert, task).won for task in tasks) / len(tasks)
    assert won[0.0] > 0.9
    assert won[1.0] < 0.2
    assert won[1.0] < won[0.5] < won[0.0]


def test_early_answers_begin_where_the_share_says(generated):
    env, expert = (
        generated.spawn(),
        envs.make_expert("webshop", early_answer_prob=0.99, early_answer_share=0.25, seed=1),
    )
    settings = WarmStartConfig(noop_prob=0.0, mistake_prob=0.0)
    demos = warm_start.demonstrate(
        env, expert, generated.tasks("train")[:80], settings, careful_expert=envs.make_expert("webshop")
    )
    words = [len(turns[0][0].split()) for _, turns in demos]
    assert min(words[:50]) > 2  # a full query has a kind of two words, two attributes and an option
    assert sum(count == 2 for count in words[-20:]) >= 18


def test_asin_pieces_and_options_are_single_tokens(catalogue_cache):
    env, expert = (
        envs.make("webshop", num_products=600, brief_results=2, cache_dir=catalogue_cache),
        envs.make_expert("webshop"),
    )
    settings = WarmStartConfig(noop_prob=0.0, mistake_prob=0.0)
    demos = warm_start.demonstrate(env, expert, env.tasks("train")[:60], settings)
    texts = [text for first, turns in demos for command, seen, _ in turns for text in (command, seen.shown)]
    tokenizer = tiny.train_tokenizer(texts, 600, expert.token_pattern)

    def pieces(text):
        return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]

    assert pieces("click[b6x8k9r0]") == ["click[", "b6", "x8", "k9", "r0", "]"]
    page = "Page 1 (Total results: 50) click[b6x8k9r0] junfi slim fit polo shirts $13.22"
    at = pieces(page).index("click[")
    assert pieces(page)[at + 1 : at + 5] == ["b6", "x8", "k9", "r0"]
    commands = {command for _, turns in demos for command, _, _ in turns}
    options = [value for value in ("black", "x-large", "vanilla") if f"click[{value}]" in commands]
    assert options
    for value in options:
        assert pieces(f"click[{value}]") == ["click[", value, "]"]


def test_a_shopper_on_the_official_products(reference_env):
    won = [play(reference_env.spawn(), Shopper(), task).won for task in reference_env.tasks("train")[:60]]
    assert sum(won) > 35  # of 60


def test_a_generated_folder_can_be_named_as_data(generated, catalogue_cache):
    folder = catalogue_cache / "webshop" / "generated-3-0-600"
    env = envs.make("webshop", data=folder, cache_dir=catalogue_cache)
    assert [g.asin for g in env.catalogue.goals][:20] == [g.asin for g in generated.catalogue.goals][:20]


@pytest.mark.parametrize(
    ("text", "words", "options", "limit"),
    [
        (
            "Find me slim fit, hand wash men's shirts with long sleeve for daily wear with color: a | b, and size: 3xl"
            ", and price lower than 30.00 dollars",
            ("slim", "fit", "hand", "wash", "men's", "shirts", "long", "sleeve", "daily", "wear"),
            ("a | b", "3xl"), 30.0,
        ),
        ("Find me mugs", ("mugs",), (), float("inf")),
        ("i need a red mug, and price lower than 20.00 dollars", ("i", "need", "red", "mug"), (), 20.0),
    ],
)  # fmt: skip
def test_parse_goal(text, words, options, limit):
    parsed_goal = parse_goal(text)
    assert (parsed_goal.words, parsed_goal.options, parsed_goal.limit) == (words, options, limit)


def test_read_results(reference_env):
    env = reference_env.spawn()
    env.reset(env.tasks("train")[0])
    page = env.step("search[shirt]").observation
    results = read_results(page.text)
    assert len(results) == 10
    assert [f"click[{one.asin}]" for one in results] == [c for c in page.admissible if c.startswith("click[b0")]
    assert all(one.price > 0 for one in results)
