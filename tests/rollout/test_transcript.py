"""Which actions continue the transcript: examples of each style of prompts, and the share over episodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paw_fast.rollout.transcript import (
    beginnings_of,
    continued_share,
    continues_transcript,
    outside_text,
    tags_of,
)
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

SEEN = ["You arrive at cabinet 2. On the cabinet 2, you see a mug 1.", "Nothing happens.", "You open the drawer 1."]


@pytest.mark.parametrize(
    ("text", "style", "valid", "opened", "outside"),
    [
        ("go to desk 1", "action", True, False, ""),
        ("You arrive at desk 1.", "action", False, False, "You arrive at desk 1."),
        ("<think>You arrive at desk 1.</think><action>go to desk 1</action>", "think_action", True, False, ""),
        ("<think>a</think><action>look</action> You see", "think_action", True, False, "You see"),
        ("hm</think>so<action>look</action>", "think_action", True, True, "so"),
        ("<think>never closed You arrive at desk 1.", "think_action", False, False, ""),
        ("<think>not closed <action>fly</action>", "think_action", False, False, "<action>fly</action>"),
        ("<search> mug </search> <information>Doc", "search", True, False, "<information>Doc"),
        ("<think>a</think><answer>no", "think_search", False, False, "<answer>no"),
    ],
)
def test_what_is_outside(text, style, valid, opened, outside):
    assert outside_text(text, style, valid, opened) == outside


@pytest.mark.parametrize(
    ("outside", "continues"),
    [
        ("You arrive at cabinet 7. On the", True),  # another number is the same beginning
        ("go to desk 1\nyou OPEN the drawer 3.", True),
        ("You open the fridge", False),  # another word in the first four
        ("arrive at cabinet 2. On the cabinet 2", False),  # not from its beginning
        ("Nothing happens.", True),  # shorter than four words: all of them
        ("Nothing", False),
        ("go to the cabinet 2", False),
        ("", False),
    ],
)
def test_what_continues_the_transcript(outside, continues):
    assert continues_transcript(outside, beginnings_of(SEEN)) == continues


def test_tags_of_observations_count_and_other_tags_do_not():
    tags = tags_of(["<information>Doc 1(Title: Ada)</information>", "You see <b>a mug</b>."])
    assert tags == {"<information>"}
    assert continues_transcript("I will write <information> myself", (), tags)
    assert not continues_transcript("<search> a <b> </search>", (), tags)


@given(st.text(alphabet="abc 1.", max_size=30), st.text(alphabet="abc 1.", max_size=30))
def test_an_observation_after_any_text_continues_it(text, observation):
    beginnings = beginnings_of([observation])
    assert continues_transcript(f"{text} {observation}", beginnings) == bool(beginnings)


def turn(outside="", command="look", valid=True, seen="You see a mug 1 on it."):
    return Transition(
        (1,), (2,), (-1.0,), (3,), (True,), command, seen, "s", 0.0, valid, outside_text=outside
    )  # fmt: skip


def test_the_share_over_episodes_by_hand():
    first = Trajectory(
        Task("a"), EpisodeId(0, 0, 0), (turn(), turn("you see a mug 4", valid=False)), 0.0, 0.0, False,
        intro_text="Welcome to the old house",
    )  # fmt: skip
    turns = (turn("welcome to the old", valid=False), turn("flee", "flee", False))
    second = Trajectory(Task("b"), EpisodeId(0, 1, 0), turns, 0.0, 0.0, False)
    assert continued_share([first, second]) == 0.5
    assert continued_share([first]) == 0.5
    assert continued_share([]) == 0.0
    # What a valid command also says is no observation's beginning.
    page = turn("click[red mug]", "click[red mug]", False, seen="click[red mug]")
    bought = turn(command="click[red mug]")
    assert continued_share([Trajectory(Task("c"), EpisodeId(0, 0, 0), (page,), 0.0, 0.0, False)]) == 1.0
    assert continued_share([Trajectory(Task("c"), EpisodeId(0, 0, 0), (page, bought), 0.0, 0.0, False)]) == 0.0
