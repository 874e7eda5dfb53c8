"""The protocol on WebShop: episodes, splits, goals of both kinds, saved sessions, what pages offer."""

import json
import random
import re

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paw_fast import envs
from paw_fast.envs.base import Env
from paw_fast.envs.webshop.env import WebshopEnv
from paw_fast.envs.webshop.goals import NO_LIMIT, sample_limit, sample_prices
from paw_fast.envs.webshop.pages import Node, Page, template_json
from paw_fast.envs.webshop.search import make_analyzer
from paw_fast.errors import UserError
from paw_fast.evaluation.task_overlap import tasks_in_train
from paw_fast.types import Task


def test_an_episode_that_is_won(reference_env):
    env = reference_env.spawn()
    assert isinstance(env, Env)
    task = next(t for t in env.tasks("train") if env.catalogue.goals[t.info["goal"]].options)
    first = env.reset(task)
    goal = env.goal
    assert first.task == goal.instruction_text
    assert task.task_type == goal.category
    assert first.admissible == ("search[<your query>]",)
    assert first.state_text == first.text
    step = env.step(f"search[{goal.name}]")
    assert f"click[{goal.asin.lower()}]" in step.observation.admissible
    for text in (goal.asin, *goal.options.values()):
        step = env.step(f"click[{text}]")
        assert (step.admissible, step.done, step.score) == (True, False, 0.0)
    step = env.step("click[buy now]")
    assert (step.score, step.done, step.won) == (1.0, True, True)
    with pytest.raises(RuntimeError, match="after the episode's end"):
        env.step("click[back to search]")
    assert env.reset(task) == first


def test_webshop_s_own_eval_split_is_trained_on(reference_env):
    """Goals 500 to 1499 are training goals of verl-agent's (500 and up), but for one that repeats a held-out goal."""
    shared = {
        split: tasks_in_train(reference_env, reference_env.tasks(split), split)
        for split in ("unseen", "test", "eval", "train", "train_original")
    }
    assert shared == {"unseen": 0, "test": 0, "eval": 999, "train": 6408, "train_original": 5408}
    numbers = {task.info["goal"] for task in reference_env.tasks("train")}
    assert shared["eval"] == sum(task.info["goal"] in numbers for task in reference_env.tasks("eval"))


def chosen_on_the_last_page(text):
    segments = text.split(" [SEP] ")
    return segments[segments.index("options") + 1]


def test_the_last_page_lists_options_by_name_whatever_was_clicked_first(reference_env):
    env = reference_env.spawn()
    task = next(t for t in env.tasks("train") if len(env.catalogue.goals[t.info["goal"]].options) > 1)
    env.reset(task)
    goal = env.goal
    for text in (f"search[{goal.name}]", f"click[{goal.asin}]"):
        env.step(text)
    for name in sorted(goal.options, reverse=True):  # the last name first
        assert env.step(f"click[{goal.options[name]}]").admissible
    pairs = [f'"{name}": "{goal.options[name]}"' for name in sorted(goal.options)]
    assert chosen_on_the_last_page(env.step("click[buy now]").observation.text) == "{" + ", ".join(pairs) + "}"


@given(st.dictionaries(st.text(max_size=5), st.text("<>&'\"\\ aé\u4e2d", max_size=8), max_size=4))
def test_the_last_page_writes_options_as_the_reference_s_template_does(options):
    """done_page.html of WebShop: `<pre>{{ options | tojson }}</pre>`."""
    expected = jinja2.Environment().from_string("{{ options | tojson }}").render(options=options)
    assert template_json(options) == expected


def test_what_the_page_does_not_offer_changes_nothing(reference_env):
    env = reference_env.spawn()
    first = env.reset(env.tasks("unseen")[0])
    for command in (
        "click[buy now]",
        "click[search]",
        "search[]",
        "look",
        "",
        "search",
        "buy[now]",
        "click[b000000000]",
    ):
        step = env.step(command)
        assert (step.score, step.done, step.admissible) == (0.0, False, False)
        assert step.observation.text == first.text


def test_the_step_limit_ends_an_episode(webshop_data, shop_cache):
    env = envs.make("webshop", search=lambda query: ["B09R9YCM6R"], max_steps=3, data=webshop_data,
                    cache_dir=shop_cache)  # fmt: skip
    env.reset(env.tasks("unseen")[0])
    steps = [env.step("search[shirt]") for _ in range(3)]
    assert [step.done for step in steps] == [False, False, True]
    assert "Total results: 1" in steps[0].observation.text
    with pytest.raises(RuntimeError, match="call reset first"):
        env.spawn().step("search[shirt]")


def test_pages_before_and_after(reference_env):
    env = reference_env.spawn()
    env.reset(env.tasks("unseen")[0])
    one = env.step("search[shirt]").observation
    two = env.step("click[next >]").observation
    assert "Page 2 (Total results: 50)" in two.text
    assert "click[< prev]" in two.admissible
    assert not set(one.admissible) & set(two.admissible) - {"click[back to search]", "click[next >]"}
    for _ in range(4):
        last = env.step("click[next >]").observation
    assert "Page 6 (Total results: 50)" in last.text  # past the last result: an empty page, as in the reference
    assert last.admissible == ("click[back to search]", "click[< prev]", "click[next >]")


def test_brief_pages_say_the_same_in_short(reference_env):
    plain, brief = reference_env.spawn(), WebshopEnv(reference_env.catalogue, brief_results=2)
    task = reference_env.tasks("unseen")[3]
    assert brief.reset(task).shown == ""
    shop = reference_env.catalogue
    first, second, third = (f"click[{shop.store[row].asin.lower()}]" for row in shop.results("shirt")[:3])
    plain.reset(task)
    chosen = []
    for command in ("search[shirt]", first, "click[description]", "click[< prev]", "click[< prev]"):
        seen, other = brief.step(command).observation, plain.step(command).observation
        assert (seen.text, seen.admissible) == (other.text, other.admissible)
        shown = seen.shown
        chosen = re.findall(r"click\[[^]]*\]", shown)
        assert set(chosen) <= set(seen.admissible)
        assert plain.goal.instruction_text not in shown
        if command == "search[shirt]":
            assert shown.startswith("Page 1 (Total results: 50) click[")
            assert chosen == [first, second]
    assert chosen == [second, third]  # the first was looked at
    with pytest.raises(UserError, match="brief_results is -1"):
        WebshopEnv(reference_env.catalogue, brief_results=-1)


def test_validation_goals_are_not_in_training(reference_env):
    goals = reference_env.catalogue.goals
    held_out = [goals[t.info["goal"]] for t in reference_env.tasks("unseen")]
    train = [goals[t.info["goal"]] for t in reference_env.tasks("train")]
    known = {(g.asin, g.instruction_text) for g in held_out}
    assert len(held_out) == 500
    assert not known & {(g.asin, g.instruction_text) for g in train}
    # A product that lists a value twice gives the same goal twice: those are left out beside the 500.
    again = [goals[i] for i in range(500, len(goals)) if (goals[i].asin, goals[i].instruction_text) in known]
    assert len(train) == len(goals) - 500 - len(again)
    assert again
    assert list(reference_env.tasks("val")) != []
    assert len(reference_env.tasks("eval")) == 1000
    assert len(reference_env.tasks("train_original")) <= len(goals) - 1500
    with pytest.raises(UserError, match="no split 'vall': choose train"):
        reference_env.tasks("vall")


def test_tasks_can_be_sliced_and_counted(reference_env):
    tasks = reference_env.tasks("train")
    assert [t.task_id for t in tasks[:3]] == [tasks[i].task_id for i in range(3)]
    assert tasks[-1].task_id == list(tasks)[-1].task_id
    assert len(tasks[10:30]) == 20


def test_goals_depend_on_the_seed_alone(webshop_data, shop_cache, reference_env):
    other = envs.make("webshop", data=webshop_data, cache_dir=shop_cache, seed=7)
    again = envs.make("webshop", data=webshop_data, cache_dir=shop_cache)
    assert [g.instruction_text for g in again.catalogue.goals] == [
        g.instruction_text for g in reference_env.catalogue.goals
    ]
    assert other.catalogue.goals[0] != reference_env.catalogue.goals[0]
    random.seed(123)  # nothing is drawn from the process's own generator
    assert envs.make("webshop", data=webshop_data, cache_dir=shop_cache).catalogue.goals[3] == again.catalogue.goals[3]


def test_a_saved_session_goes_on(reference_env):
    env, task = reference_env.spawn(), reference_env.tasks("train")[5]
    env.reset(task)
    asin = env.goal.asin
    for command in (f"search[{env.goal.name}]", f"click[{asin}]", "click[features]"):
        env.step(command)
    other = reference_env.spawn()
    saved = env.session.copy()
    seen = other.restore(task, saved, num_steps=3)
    assert seen.text == env.step("nothing").observation.text
    for command in ("click[< prev]", "click[< prev]", f"click[{asin}]", "click[buy now]"):
        assert env.step(command) == other.step(command)
    assert saved.page == "Features"


def test_a_batch_of_128_shares_one_catalogue(reference_env):
    batch = envs.make_batch(reference_env, 128)
    tasks = [reference_env.tasks("train")[i % 50] for i in range(128)]
    batch.reset(tasks)
    steps = batch.step(["search[mens shirt]"] * 128)
    texts = {step.observation.text.split("Back to Search")[1] for step in steps}
    assert len(texts) == 1
    batch.close()


def test_a_task_of_another_catalogue(reference_env):
    with pytest.raises(UserError, match="no goal of this catalogue, which has 6910"):
        reference_env.spawn().reset(Task("x", "webshop", info={"goal": 6910}))


def test_human_goals(raw, write_shop, tmp_path):
    said = [
        {"instruction": "i want a red mug.", "instruction_attributes": ["dishwasher safe"],
         "instruction_options": ["red"]},
        {"instruction": "anything", "instruction_attributes": [], "instruction_options": []},
    ]  # fmt: skip
    (tmp_path / "h.json").write_text(json.dumps({"B1": said}))
    env = envs.make("webshop", human_goals=tmp_path / "h.json", **write_shop([raw("B1"), raw("B2")]))
    goals = env.catalogue.goals
    assert len(goals) == 1
    assert goals[0].instruction_text.startswith("i want a red mug, and price lower than ")
    assert goals[0].options == ("red",)
    assert goals[0].weight == 1.0
    env.reset(Task("x", info={"goal": 0}))
    for command in ("search[red mug]", "click[b1]", "click[red]"):
        env.step(command)
    step = env.step("click[buy now]")
    assert step.score == 1.0
    assert (env.session.parts.r_option, env.session.parts.r_att) == (1.0, 1.0)


def test_a_value_that_two_options_share_is_taken_for_the_last(raw, write_shop):
    same = {"Color": [{"value": "one"}, {"value": "two"}], "Size": [{"value": "one"}]}
    env = envs.make("webshop", **write_shop([raw("B1", customization_options=same)]))
    env.reset(Task("x", info={"goal": 0}))
    for command in ("search[mug]", "click[b1]", "click[two]", "click[one]"):
        step = env.step(command)
    assert env.session.options == {"color": "two", "size": "one"}
    assert step.observation.admissible[-2:] == ("click[one]", "click[two]")


def test_rich_pages_mark_what_was_clicked():
    nodes = (
        Node("B1", "link"),
        Node("B2", "link"),
        Node("red", "option"),
        Node("blue", "option"),
        Node("Go", "button"),
    )
    page = Page(nodes, address='x/{"color": "red"}', visited=frozenset({"B2"}))
    assert page.text_rich() == (
        "You have clicked red.\n\n[button] B1 [button_]\n\n[clicked button] B2 [clicked button_]\n"
        "  [clicked button] red [clicked button_]\n  [button] blue [button_]\n[button] Go [button_]\n"
    )
    assert page.clickables() == ["go", "b1", "b2", "red", "blue"]


def test_price_limits_by_hand():
    assert sample_limit(975.0, random.Random(0)) == 990.0  # 980 and 990 are all there is above
    assert sample_limit(985.0, random.Random(0)) == NO_LIMIT
    rng = random.Random(5)
    drawn = {sample_limit(20.0, rng) for _ in range(200)}
    assert drawn == {40.0, 50.0, 60.0}  # of 30, 40, 50, 60 the larger of two
    prices = sample_prices(np.array([[5.0, np.nan], [3.0, 3.0], [9.0, 1.0]]), random.Random(1))
    expected = random.Random(1)
    assert prices.tolist() == [5.0, expected.uniform(3.0, 3.0), expected.uniform(9.0, 1.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Men's T-Shirts", ["men", "t", "shirt"]),
        ("the 3.5 oz. mugs are washable", ["3.5", "oz", "mug", "washabl"]),
        ("s as easily", ["s", "easili"]),
        ("", []),
    ],
)
def test_words_as_lucene_gives_them(text, expected):
    assert make_analyzer()(text) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "html"}, "no mode 'html': choose text or text_rich"),
        ({"goals": "robot"}, "no goals 'robot': choose synthetic or human"),
        ({"num_products": 0}, "--env.num-products is 0"),
        ({"max_steps": 0}, "--env.max-steps is 0, expected 1 or more"),
        ({"sead": 1}, "webshop has no setting 'sead'"),
    ],
)
def test_wrong_settings(settings, message, raw, write_shop):
    with pytest.raises(UserError, match=message):
        envs.make("webshop", **write_shop([raw("B1")]), **settings)
