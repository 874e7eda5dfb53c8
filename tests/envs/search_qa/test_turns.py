"""How a policy's turn is read and written, and what the search templates show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.envs.search_qa.env import read_command
from paw_fast.rollout.prompts import PromptTemplate, parse_action, write_action
from paw_fast.types import Observation


@pytest.mark.parametrize(
    ("text", "command", "well_formed"),
    [
        ("<think>hm</think> <search> Ada Lovelace </search>", "search[Ada Lovelace]", True),
        ("<think>hm</think><answer>Paris</answer>", "answer[Paris]", True),
        ("<think>a\nb</think>\n<answer> Paris,\nFrance </answer>", "answer[Paris,\nFrance]", True),
        ("<think>x</think><search>a</search><answer>b</answer>", "search[a]", True),  # the first closing tag ends it
        ("<think>x</think><answer>a <answer>b</answer>", "answer[b]", True),  # the last opening tag counts
        ("<think>x</think><search>a <answer>b</answer>", "answer[b]", True),
        ("<search>a</search>", "search[a]", False),  # no thought: played, and penalised
        ("</think><think><search>a</search>", "search[a]", False),
        ("<search>a</search><think>late</think>", "search[a]", False),
        ("<think>x</think><search> </search>", "search[]", False),
        ("<think>x</think><search>a</answer>", "invalid[search>a</answer>]", False),
        ("<think>x</think> Paris", "invalid[ink>x</think> Paris]", False),
        ("answer[Paris]", "invalid[answer[Paris]]", False),  # the environment's own form is not the policy's
        ("<think>x</think><SEARCH>a</SEARCH>", "invalid[<SEARCH>a</SEARCH>]", False),
        ("", "invalid[]", False),
        ("<think>北京</think><answer>北京</answer>", "answer[北京]", True),
    ],
)
def test_reading_a_turn(text, command, well_formed):
    parsed = parse_action(text, "think_search")
    if command.startswith("invalid["):
        assert (parsed.well_formed, read_command(parsed.command)) == (False, None)
        assert text.strip().endswith(parsed.command.removeprefix("invalid[").removesuffix("]"))
    else:
        assert (parsed.command, parsed.well_formed) == (command, well_formed)


def test_without_thoughts():
    assert parse_action("<search> a </search>", "search").well_formed
    assert not parse_action("<search> a", "search").well_formed


CONTENT = st.text(st.characters(blacklist_characters="<>\r", blacklist_categories=["Cs"]), min_size=1).map(str.strip)


@given(st.sampled_from(["search", "answer"]), CONTENT.filter(bool), st.sampled_from(["search", "think_search"]))
def test_what_is_written_is_read_back(kind, content, style):
    command = f"{kind}[{content}]"
    parsed = parse_action(write_action(command, style), style)
    assert parsed.well_formed
    assert parsed.command == command


@given(st.text(max_size=60))
def test_any_text_can_be_read(text):
    parsed = parse_action(text, "think_search")
    assert parsed.well_formed <= (read_command(parsed.command) is not None)


HISTORY = [
    {"observation": "Who?", "command": "search[first]"},
    {"observation": "<information>Doc 1 old</information>", "command": "search[second]"},
]


@pytest.mark.parametrize("name", ["verl", "compact"])
def test_templates_show_question_searches_and_passages(name):
    template = PromptTemplate.load(name, "search")
    now = Observation("<information>Doc 1 new</information>", (), "Who?")
    text = template.window(now, "Who?", HISTORY, 2)
    order = ["Who?", "<search> first </search>", "Doc 1 old", "<search> second </search>", "Doc 1 new"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert text.count("Who?") == 1  # the first observation is the question itself
    first = Observation("Who?", (), "Who?")
    assert template.window(first, "Who?", [], 0).count("Who?") == template.first(first).count("Who?") == 1
    assert "Doc 1 new" in template.window(now, "Who?", [], 2)  # without history the last passages stay
    before, after = template.split_next(now)
    assert "Doc 1 new" not in before + after


def test_the_instructions_name_both_actions_and_generation_stops_after_either():
    template = PromptTemplate.load("verl", "search")
    assert template.stop == ("</search>", "</answer>")
    text = template.first(Observation("Who?", (), "Who?"))
    for tag in ("<think>", "<search>", "<information>", "<answer>"):
        assert tag in text
