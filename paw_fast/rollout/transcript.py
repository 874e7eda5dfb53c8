"""Finds actions that continue the transcript: the policy writes an observation itself, instead of ending its action.

A large world-model loss can teach that (ECHO, arXiv 2605.24517, warns of it). An action *continues the transcript* if
its text outside of its thought and of a valid command holds

- a tag with which an observation of the same episodes begins, such as `<information>`, or
- the beginning of such an observation: its first `FIRST_WORDS` words, or all of them if it has fewer, but at least two.

Case does not count, and any number counts as any other. Beginnings that valid commands also have are left out. An
action that is valid as a whole holds no other text and never counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from paw_fast.types import Trajectory

FIRST_WORDS = 4
_THOUGHT = re.compile(r"<think>.*?(?:</think>|(?=<action>)|\Z)", re.DOTALL)
_COMMAND = re.compile(r"<(action|search|answer)>.*?</\1>", re.DOTALL)
_OPENING_TAG = re.compile(r"\s*(<[A-Za-z]\w*>)")


def outside_text(text: str, style: str, valid: bool, thought_opened: bool = False) -> str:
    """What an action holds beside its thought and, if it is valid, its command.

    style, thought_opened: as for `prompts.parse_action`.

    >>> outside_text("<think>a mug!</think> You see it. <action>look</action>", "think_action", True)
    'You see it.'
    >>> outside_text("You open the drawer", "action", False), outside_text("look", "action", True)
    ('You open the drawer', '')
    """
    if valid and style == "action":
        return ""
    text = _THOUGHT.sub(" ", f"<think>{text}" if thought_opened else text)
    return (_COMMAND.sub(" ", text, count=1) if valid else text).strip()


def continues_transcript(outside: str, beginnings: Iterable[Sequence[str]], tags: Iterable[str] = ()) -> bool:
    """Whether a text outside of a command holds a tag, or one of the beginnings of `beginnings_of`.

    >>> seen = beginnings_of(["You arrive at desk 1. On it, you see a mug 2.", "Nothing happens."])
    >>> [continues_transcript(text, seen) for text in ("You arrive at desk 12. On", "go to desk 1", "nothing happens.")]
    [True, False, True]
    """
    if any(tag in outside for tag in tags):
        return True
    words = _words(outside)
    text = " ".join(["", *words, ""])
    return any(" ".join(["", *first, ""]) in text for first in beginnings)


def beginnings_of(observations: Iterable[str], commands: Iterable[str] = ()) -> set[tuple[str, ...]]:
    """The beginnings of observations, without those that are the beginning of a command too.

    >>> beginnings_of(["Nothing happens.", "click[buy now]", "Ok"], commands=["click[buy now]"])
    {('nothing', 'happens.')}
    """
    found = {tuple(_words(text)[:FIRST_WORDS]) for text in observations}
    found -= {tuple(_words(text)[:FIRST_WORDS]) for text in commands}
    return {words for words in found if len(words) > 1}


def tags_of(observations: Iterable[str]) -> set[str]:
    """The tags with which observations begin.

    >>> tags_of(["<information>Doc 1", "You see nothing."])
    {'<information>'}
    """
    return {match[1] for text in observations if (match := _OPENING_TAG.match(text))}


def continued_share(trajectories: Sequence[Trajectory]) -> float:
    """Share of the actions of these episodes that continue the transcript; 0 if there are none."""
    transitions = [t for trajectory in trajectories for t in trajectory.transitions]
    suspects = [t.outside_text for t in transitions if t.outside_text]
    if not suspects:
        return 0.0
    observations = {t.observation_text for t in transitions} | {t.intro_text for t in trajectories}
    beginnings = beginnings_of(observations, {t.command for t in transitions if t.valid})
    tags = tags_of(observations)
    return sum(continues_transcript(text, beginnings, tags) for text in suspects) / len(transitions)


def _words(text: str) -> list[str]:
    return re.sub(r"\d+", "#", text.lower()).split()
