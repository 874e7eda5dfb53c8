"""Against the reference: whole episodes, prices, goals, rewards and rankings that it gave."""

import json
import re

import pytest

from paw_fast import envs
from paw_fast.envs.webshop import score
from paw_fast.envs.webshop.records import Goal
from paw_fast.types import Task


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def traces(webshop_data):
    return lines(webshop_data / "golden_traces.jsonl")


def reference_ranking(trace, all_asins):
    """What the reference's search gave in a trace: the asins of its result pages, filled up to its total."""
    found = {}
    for step in trace["steps"]:
        action = step["action"] or ""
        pages = re.search(r"Page (\d+) \(Total results: (\d+)\)", step["obs"])
        if not (action.startswith("search[") and action.endswith("]") and pages):
            continue
        assert pages[1] == "1"
        asins = [name.upper() for name in step["avail"]["clickables"] if name.upper() in all_asins]
        rest = [asin for asin in all_asins if asin not in asins]
        found[action[7:-1].lower()] = (asins + rest)[: int(pages[2])]
    return found


def test_whole_episodes_are_those_of_the_reference(traces, webshop_data, shop_cache, reference_env):
    store = reference_env.catalogue.store
    all_asins = dict.fromkeys(store.asin(row) for row in range(len(store)))
    modes = set()
    for trace in traces:
        ranking = reference_ranking(trace, all_asins)
        env = envs.make("webshop", data=webshop_data, mode=trace["mode"], search=ranking.__getitem__, max_steps=100,
                        cache_dir=shop_cache)  # fmt: skip
        modes.add(trace["mode"])
        observation = env.reset(Task("golden", "webshop", info={"goal": trace["goal_idx"]}))
        goal = env.goal
        assert (goal.asin, list(goal.attributes), goal.price_upper, goal.options) == tuple(
            trace["goal"][key] for key in ("asin", "attributes", "price_upper", "goal_options")
        )
        for number, expected in enumerate(trace["steps"]):
            place = f"goal {trace['goal_idx']}, step {number}, {expected['action']}"
            if expected["action"] is not None:
                step = env.step(expected["action"])
                observation = step.observation
                assert (step.score, step.done) == (expected["reward"], expected["done"]), place
                if step.done:
                    parts = env.session.parts
                    assert {key: getattr(parts, key) for key in expected["info"]} == expected["info"], place
                    assert env.session.asin == expected["bought"]
                    assert env.session.options == expected["options"]
            assert observation.text == expected["obs"], place
            if expected.get("avail"):
                can_search = "search[<your query>]" in observation.admissible
                assert can_search == expected["avail"]["has_search_bar"], place
                clicks = [one[6:-1] for one in observation.admissible if one.startswith("click[")]
                assert clicks == [one for one in expected["avail"]["clickables"] if one != "search"], place
    assert modes == {"text", "text_rich"}
    assert len(traces) == 19


def test_prices_and_goals_of_seed_42(webshop_data, reference_env):
    shop = reference_env.catalogue
    prices = json.loads((webshop_data / "product_prices_seed42.json").read_text())
    assert {shop.store.asin(row): price for row, price in enumerate(shop.goals.prices.tolist())} == prices
    assert len(shop.goals) == 6910
    for goal, expected in zip(shop.goals, lines(webshop_data / "goals_seed42_first50.jsonl"), strict=False):
        ours = {"asin": goal.asin, "category": goal.category, "query": goal.query, "name": goal.name,
                "product_category": goal.product_category, "instruction_text": goal.instruction_text,
                "attributes": list(goal.attributes), "price_upper": goal.price_upper, "goal_options": goal.options,
                "weight": goal.weight}  # fmt: skip
        assert ours == expected


def test_rewards_and_all_their_parts(webshop_data, reference_env):
    store = reference_env.catalogue.store
    cases = lines(webshop_data / "reward_oracle.jsonl")
    for case in cases:
        wanted, bought = (store[store.row(case[key])] for key in ("goal_asin", "bought"))
        goal = Goal(wanted.asin, "", tuple(case["goal_attributes"]), case["price_upper"], case["goal_options"],
                    wanted.category, wanted.query, wanted.title, wanted.product_category)  # fmt: skip
        parts = score(goal, bought, case["options"], case["price"])
        assert parts.reward == pytest.approx(case["reward"], abs=1e-9)
        for key, expected in case["info"].items():
            assert getattr(parts, key) == pytest.approx(expected, abs=1e-9), (key, case)
        assert (parts.r_option is None) == ("r_option" not in case["info"])
    assert len(cases) == 500


def test_the_ranking_agrees_with_lucene(webshop_data, reference_env):
    """At least 97 % of the reference's first ten are among ours, and as many products are found."""
    shop = reference_env.catalogue
    shared = total = 0
    for line in (webshop_data / "lucene_top50.tsv").read_text(encoding="utf-8").splitlines():
        query, found = line.split("\t")
        expected = [one.split(":")[0] for one in found.split()]
        ours = [shop.store.asin(row) for row in shop.results(query)]
        assert len(ours) == len(expected), query
        shared += len(set(ours[:10]) & set(expected[:10]))
        total += len(expected[:10])
    assert total == 2000
    assert shared / total >= 0.97
