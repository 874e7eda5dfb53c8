"""Defines what never changes in a game: `StaticWorld`, its goal, and the actions that are possible in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from paw_fast.envs.alfworld.text import Rules

# A changing fact: (predicate, first number, second number or -1). Numbers as in `StaticWorld`.
Literal = tuple[str, int, int]


@dataclass(frozen=True)
class Goal:
    """clauses: all must hold; each is a tuple of alternatives; each of those a frozenset of literals."""

    clauses: tuple[tuple[frozenset[Literal], ...], ...]


class Action(NamedTuple):
    """What a command does: a verb, an object (or -1), a receptacle or second object (or -1)."""

    verb: str
    thing: int = -1
    other: int = -1


class StaticWorld:
    """The facts of a game that never change, by the numbers of its receptacles, objects and places.

    `world.World` fills it from a parsed problem; states and the engine read it.

    receptacles, objects, places    display names by number
    rules, task                     the wording and rules of the game file, and the task's sentence
    place_of[r], at_place[p]        the place of a receptacle (-1: none), and the receptacles at a place
    go_to                           the commands that go to a receptacle
    holders[o]                      the receptacles that may hold object o
    inner[o]                        the objects inside object o
    object_types, receptacle_types  the type names of each
    goal                            what must hold for the game to be won
    digest                          identifies the game, the same in every process

    The others are sets of object or receptacle numbers that have a property.
    """

    receptacles: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]
    rules: Rules
    task: str
    place_of: tuple[int, ...]
    at_place: tuple[tuple[int, ...], ...]
    go_to: tuple[tuple[str, Action], ...]
    holders: tuple[frozenset[int], ...]
    inner: tuple[tuple[int, ...], ...]
    object_types: tuple[tuple[str, ...], ...]
    receptacle_types: tuple[tuple[str, ...], ...]
    openable: frozenset[int]
    pickupable: frozenset[int]
    cleanable: frozenset[int]
    heatable: frozenset[int]
    coolable: frozenset[int]
    toggleable: frozenset[int]
    sliceable: frozenset[int]
    is_container: frozenset[int]
    knives: frozenset[int]
    cleaners: frozenset[int]
    heaters: frozenset[int]
    coolers: frozenset[int]
    goal: Goal

    @property
    def digest(self) -> str:
        raise NotImplementedError

    def index(self, kind: str, name: str) -> int:
        """The number of a receptacle, object or location id. Raises `KeyError`."""
        raise NotImplementedError
