"""Implements the expert for household tasks, which sees only the observations of the episode.

The expert reads the task's sentence and the observations, never the true state or the admissible commands. It looks
for the object in receptacles that may hold it, by a fixed order of types (open surfaces before doors and
drawers, the goal's own type and the task's appliance late) and by number upward, opens what is closed, and goes
back only for what it has seen.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from paw_fast.envs.alfworld.tables import APPLIANCES, HOLDS, LAMP_STANDS, words
from paw_fast.envs.base import BaseExpert
from paw_fast.types import Observation

# Where to look first. Instances are equally likely in generated games, so the cheap ones come first.
SEARCH_ORDER = words(
    "countertop diningtable sidetable coffeetable desk dresser shelf bed sofa armchair ottoman tvstand cart toilet "
    "bathtubbasin sinkbasin stoveburner coffeemachine garbagecan laundryhamper handtowelholder towelholder "
    "toiletpaperhanger toaster fridge microwave safe drawer cabinet"
)
_RANK = {kind: i for i, kind in enumerate(SEARCH_ORDER)}
_LOWER_HOLDS = {kind.lower(): frozenset(o.lower() for o in objects) for kind, objects in HOLDS.items()}
_STANDS = frozenset(kind.lower() for kind in LAMP_STANDS)

_NAME = r"[a-z]+ \d+"
_INTRO = re.compile(r"Looking quickly around you, you see (.*?)\.")
_TASK = re.compile(r"Your task is to: (.*)\.")
_CONTENTS = re.compile(rf"(?:On|In) (?:the )?({_NAME}), you see (.*?)\.")
_OPEN = re.compile(rf"The ({_NAME}) is open\. In it, you see (.*?)\.")
_CLOSED = re.compile(rf"(?:[Tt]he )?({_NAME}) is closed\.")
_TAKEN = re.compile(rf"You (?:pick up the|take) ({_NAME}) from (?:the )?({_NAME})\.")
_PUT = re.compile(rf"You (?:move the|put) ({_NAME}) (?:to|in/on) (?:the )?({_NAME})\.")
_WORKED = re.compile(rf"You (clean|heat|cool) (?:the )?({_NAME}) using")

_SENTENCES = (
    (r"(?:put a|find) clean ([a-z]+) in ([a-z]+)", "clean"),
    (r"clean some ([a-z]+) and put it in ([a-z]+)", "clean"),
    (r"put a hot ([a-z]+) in ([a-z]+)", "heat"),
    (r"heat some ([a-z]+) and put it in ([a-z]+)", "heat"),
    (r"put a cool ([a-z]+) in ([a-z]+)", "cool"),
    (r"cool some ([a-z]+) and put it in ([a-z]+)", "cool"),
    (r"(?:put|find) two ([a-z]+) (?:and put them )?in ([a-z]+)", "two"),
    (r"(?:look at|examine the) ([a-z]+) (?:under|with) the ([a-z]+)", "look"),
    (r"put (?:a|some) ([a-z]+) (?:in|on) ([a-z]+)", "place"),
)
_TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
assert {appliance.lower() for appliance, _ in APPLIANCES.values()} == set(_TOOLS.values())


@dataclass(frozen=True)
class ParsedGoal:
    """A parsed task sentence. kind: place, two, look, clean, heat or cool; goal: receptacle or lamp type."""

    kind: str
    target: str
    goal: str


def parse_goal(sentence: str) -> ParsedGoal | None:
    """Parses a templated task sentence (without "Your task is to"); returns None for any other.

    >>> parse_goal("cool some mug and put it in cabinet")
    ParsedGoal(kind='cool', target='mug', goal='cabinet')
    """
    for pattern, kind in _SENTENCES:
        if found := re.fullmatch(pattern, sentence.strip().rstrip(".")):
            return ParsedGoal(kind, found.group(1), found.group(2))
    return None


class SearcherExpert(BaseExpert):
    """Searches for the objects of the task and acts on the observations.

    rng is used only when `noise` > 0: the chance that a search goes on at any other place that may hold the
    object instead of the next one. Without noise the same episode always gets the same commands.
    """

    noop_command: str | None = "look"

    def __init__(self, rng: random.Random | None = None, noise: float = 0.0) -> None:
        self._rng, self._noise = rng or random.Random(0), noise

    def reset(self, observation: Observation) -> None:
        """Starts an episode. Raises `ValueError` if the task is not one of the templates."""
        text = observation.text
        sentence, seen = _TASK.search(text), _INTRO.search(text)
        goal = parse_goal(sentence.group(1)) if sentence else None
        if goal is None:
            raise ValueError(f"not a task this expert knows: {text[-120:]!r}")
        self.goal = goal
        self._official = seen is not None and not seen.group(1).startswith("a ")
        self._receptacles = sorted(_names(seen.group(1)), key=_kind_and_number) if seen else []
        self._contents: dict[str, list[str]] = {}
        self._closed: set[str] = set()
        self._here: str | None = None
        self._held: str | None = None
        self._worked: set[str] = set()
        self._placed: dict[str, str] = {}
        self._failed: set[str] = set()
        self._last: str | None = None

    def act(self, observation: Observation) -> str:
        """Returns the next command, given the last observation."""
        self._read(observation.text)
        command = self._choose()
        self._last = command
        return command

    def _read(self, text: str) -> None:
        if text == "Nothing happens." and self._last is not None:
            self._failed.add(self._last)
            if self._last.startswith("go to "):  # it shares the place where we stand
                self._here = self._last.removeprefix("go to ")
            return
        if text.startswith("-= Welcome"):
            return
        described = None
        for found in (*_CONTENTS.finditer(text), *_OPEN.finditer(text)):
            described = found.group(1)
            if described in self._receptacles:
                self._contents[described] = _names(found.group(2))
                self._closed.discard(described)
        if found := _CLOSED.search(text):
            described = found.group(1)
            self._closed.add(described)
        if text.startswith("You arrive at") and described is not None:
            self._here = described
        elif text.startswith("You close") and self._here is not None:
            self._closed.add(self._here)
        if found := _TAKEN.match(text):
            thing, source = found.group(1), found.group(2)
            self._held = thing
            if thing in self._contents.get(source, ()):
                self._contents[source].remove(thing)
            self._placed.pop(thing, None)
        elif found := _PUT.match(text):
            self._held = None
            if found.group(2) in self._contents:
                self._contents[found.group(2)].append(found.group(1))
            self._placed[found.group(1)] = found.group(2)
        elif found := _WORKED.match(text):
            self._worked.add(found.group(2))

    def _choose(self) -> str:
        kind, target, goal = self.goal.kind, self.goal.target, self.goal.goal
        if self._held is not None and _kind(self._held) != target:
            return self._lay_down()
        if self._held is None:
            spot = self._seen(target)
            if spot is None:
                return self._search(target)
            thing, receptacle = spot
            return self._visit(receptacle) or f"take {thing} from {receptacle}"
        thing = self._held
        if kind == "look":
            spot = self._seen(goal)
            if spot is None:
                return self._search(goal)
            return self._visit(spot[1], enter=False) or f"use {spot[0]}"
        if kind in _TOOLS and thing not in self._worked:
            tools = [r for r in self._receptacles if _kind(r) == _TOOLS[kind]]
            if not tools:
                return "look"
            return self._visit(tools[0], enter=False) or f"{kind} {thing} with {tools[0]}"
        goals = [r for r in self._receptacles if _kind(r) == goal]
        if not goals:
            return "look"
        used = [r for o, r in self._placed.items() if _kind(o) == target and r in goals]
        chosen = used[0] if used else goals[0]
        return self._visit(chosen) or self._put(thing, chosen)

    def _put(self, thing: str, receptacle: str) -> str:
        return f"put {thing} in/on {receptacle}" if self._official else f"move {thing} to {receptacle}"

    def _lay_down(self) -> str:
        """Puts down an object that the task does not need."""
        assert self._held is not None
        for receptacle in sorted(self._receptacles, key=lambda r: (r != self._here, r in self._closed)):
            command = self._put(self._held, receptacle)
            if _kind(self._held) in _LOWER_HOLDS.get(_kind(receptacle), ()) and command not in self._failed:
                return self._visit(receptacle) or command
        return "inventory"

    def _visit(self, receptacle: str, enter: bool = True) -> str | None:
        """Returns the next command on the way to (and, with `enter`, into) a receptacle; None on arrival."""
        if self._here != receptacle:
            return f"go to {receptacle}"
        if not enter:
            return None
        if receptacle in self._closed:
            return f"open {receptacle}" if f"open {receptacle}" not in self._failed else None
        unknown = receptacle not in self._contents and f"examine {receptacle}" not in self._failed
        return f"examine {receptacle}" if unknown else None

    def _seen(self, kind: str) -> tuple[str, str] | None:
        """Returns (object, receptacle) of the first known object that is not at its goal, the current place first."""
        found = []
        for receptacle, things in self._contents.items():
            for thing in things:
                if _kind(thing) != kind or f"take {thing} from {receptacle}" in self._failed:
                    continue
                in_goal = _kind(receptacle) == self.goal.goal and self.goal.kind != "look"
                if in_goal and (self.goal.kind in ("place", "two") or thing in self._worked):
                    self._placed.setdefault(thing, receptacle)
                    continue
                rank = self._receptacles.index(receptacle) if receptacle in self._receptacles else 0
                found.append((receptacle != self._here, rank, _number(thing), thing, receptacle))
        return (min(found)[3], min(found)[4]) if found else None

    def _search(self, wanted: str) -> str:
        """Returns the next command of the search for an object of a type."""
        if self._here is not None and self._here not in self._contents and (command := self._visit(self._here)):
            return command
        left = [r for r in self._receptacles if r not in self._contents and f"open {r}" not in self._failed]
        left.sort(key=lambda r: (*self._priority(wanted, _kind(r)), _number(r)))
        if not left:
            return "look"
        likely = [r for r in left if self._priority(wanted, _kind(r))[0] == 0]
        if self._noise > 0 and len(likely) > 1 and self._rng.random() < self._noise:
            return f"go to {self._rng.choice(likely)}"
        return f"go to {left[0]}"

    def _priority(self, wanted: str, receptacle_kind: str) -> tuple[int, int]:
        rank = _RANK.get(receptacle_kind, len(_RANK))
        if wanted.endswith("lamp"):
            return (0 if receptacle_kind in _STANDS else 1), rank
        if wanted not in _LOWER_HOLDS.get(receptacle_kind, ()):
            return 3, rank
        if receptacle_kind == self.goal.goal and self.goal.kind != "look":
            return 2, rank
        return (1 if receptacle_kind == _TOOLS.get(self.goal.kind) else 0), rank


def _names(listing: str) -> list[str]:
    return re.findall(_NAME, listing)


def _kind(name: str) -> str:
    return name.rsplit(" ", 1)[0]


def _number(name: str) -> int:
    return int(name.rsplit(" ", 1)[1])


def _kind_and_number(name: str) -> tuple[str, int]:
    return _kind(name), _number(name)
