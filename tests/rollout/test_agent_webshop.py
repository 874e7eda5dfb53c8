"""The agent loop on WebShop: reward for success alone beside the shop's own score, the form of the pages, limits."""

import importlib.util

import pytest
from make_records import agent_settings, request_for

from paw_fast import envs
from paw_fast.envs.webshop.env import WebshopEnv
from paw_fast.rollout.agent_loop import AgentLoop
from paw_fast.rollout.engines.base import Completion
from paw_fast.rollout.prompts import PromptTemplate

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("bm25s", "Stemmer", "rapidfuzz")),
    reason="needs the extra webshop",
)


class Scripted:
    """A generator that gives each episode its commands in turn."""

    policy_version = 0

    def __init__(self, chat, scripts):
        self.chat, self.scripts, self.queue, self.prompts = chat, scripts, [], []

    def submit(self, request):
        self.queue.append(request)
        self.prompts.append(self.chat.decode(request.prompt_ids))

    def step(self):
        queue, self.queue = self.queue, []
        done = []
        for request in queue:
            ids = self.chat.encode(self.scripts[request.episode].pop(0))
            done.append(Completion(request.episode, tuple(ids), (0.0,) * len(ids), True, (0,) * len(ids)))
        return done

    def release(self, episode):
        pass


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return envs.make("webshop", num_products=400, cache_dir=tmp_path_factory.mktemp("shop"))


def play(env, chat, scripts, template="compact", **settings):
    engine = Scripted(chat, scripts)
    options = agent_settings(max_steps=15, **settings)
    loop = AgentLoop(engine, [env.spawn()], chat, PromptTemplate.load(template, "webshop"), options)
    task = env.tasks("train")[0]
    return list(loop.play([request_for(task, 0, i) for i in range(len(scripts))])), engine.prompts


def goal_of(env):
    return env.catalogue.goals[env.tasks("train")[0].info["goal"]]


def test_only_success_is_rewarded_and_the_score_is_kept(env, chat):
    goal = goal_of(env)
    way = [f"search[{goal.name}]", f"click[{goal.asin.lower()}]"]
    options = [f"click[{value}]" for value in goal.options.values()]
    (won, part), _ = play(env, chat, [[*way, *options, "click[buy now]"], [*way, "click[buy now]"]])
    assert (won.won, won.episode_return, won.success_return, won.score) == (True, 10.0, 10.0, 1.0)
    assert (part.won, part.episode_return, part.success_return) == (False, 0.0, 0.0)
    assert part.score == pytest.approx(1 - len(options) / (len(goal.attributes) + len(options) + 1))
    assert all(t.valid for t in won.transitions)  # a search is valid though the page lists only its form


def test_what_a_page_does_not_offer_is_invalid(env, chat):
    (trajectory,), _ = play(env, chat, [["click[buy now]", "look", "search[bars]"] + ["click[next >]"] * 12])
    assert [t.valid for t in trajectory.transitions] == [False, False] + [True] * 13
    assert trajectory.episode_return == pytest.approx(-0.2)
    assert trajectory.success_return == pytest.approx(0.0)
    assert len(trajectory.transitions) == 15


@pytest.mark.parametrize("layout", ["window", "trajectory"])
def test_pages_are_shown_without_the_instruction(env, chat, layout):
    goal = goal_of(env)
    (trajectory,), prompts = play(env, chat, [["search[bars]"] + ["look"] * 14], layout=layout, history=1)
    assert prompts[0].count(goal.instruction_text) == 1
    assert prompts[1].count(goal.instruction_text) == 1
    assert "'Back to Search' [SEP] 'Page 1" in prompts[1]
    first = trajectory.transitions[0]
    shown = [i for i, is_text in zip(first.observation_ids, first.observation_mask, strict=True) if is_text]
    assert chat.decode(shown) == first.observation_text
    assert first.observation_text.startswith("'Back to Search'")


def test_a_long_history_and_long_pages_are_cut_and_counted(env, chat):
    script = ["<think>x</think><action>search[bars]</action>"] * 15
    (whole,), _ = play(env, chat, [list(script)], template="verl", layout="window", max_sequence_tokens=10**6)
    assert whole.num_cut == 0
    (cut,), prompts = play(env, chat, [list(script)], template="verl", layout="window", max_sequence_tokens=10**6,
                           max_observation_chars=100)  # fmt: skip
    assert cut.num_cut == 14
    assert max(map(len, prompts)) < max(len(t.observation_text) for t in whole.transitions) + 5000
    assert all(len(t.observation_text) <= 100 for t in cut.transitions)
    template = PromptTemplate.load("verl", "webshop")
    template.max_chars = 3000
    engine = Scripted(chat, [list(script)])
    settings = agent_settings(max_steps=15, layout="window", max_sequence_tokens=10**6)
    loop = AgentLoop(engine, [env.spawn()], chat, template, settings)
    (fallen,) = loop.play([request_for(env.tasks("train")[0])])
    assert fallen.num_cut == 12  # the first histories hold the short start page
    assert "The latest of them" not in engine.prompts[5]


def test_an_episode_is_truncated_that_runs_out_of_steps_and_not_one_that_bought(env):
    goal = goal_of(env)
    way = [f"search[{goal.name}]", f"click[{goal.asin.lower()}]"]
    for last, truncated in (("click[< prev]", True), ("click[buy now]", False)):
        short = WebshopEnv(env.catalogue, max_steps=3)
        short.reset(env.tasks("train")[0])
        *_, step = [short.step(command) for command in (*way, last)]
        assert (step.done, step.truncated) == (True, truncated)
