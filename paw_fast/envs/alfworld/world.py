"""Builds a game's unchanging part, an immutable `World`, from a parsed problem.

Receptacles, objects and places are numbers: positions in the world's lists, which are sorted by PDDL id, the
order in which the reference lists them. What the reference calls facts is kept as is, one pair at a time, so
that an object in two receptacles, shared places and odd initial states behave as they do there.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from paw_fast.envs.alfworld.goal import UnknownGoal, compile_goal
from paw_fast.envs.alfworld.pddl import KINDS, SIGNATURES, PddlError, Problem, TooLarge, UnsupportedGame, show
from paw_fast.envs.alfworld.state import State
from paw_fast.envs.alfworld.static import Action, StaticWorld
from paw_fast.envs.alfworld.text import Rules

# The reference writes these two in capitals at times, and reads braces in its texts as expressions.
_SPECIAL = ("i", "p")
_ODD = re.compile(r"[^a-z0-9_.,+-]")
_KNIVES = ("knifetype", "butterknifetype")
# Official games name below 250 things in below 1,500 facts. The limits bound what a malicious file can cost.
MAX_ENTITIES = 1_000
MAX_FACTS = 50_000
MAX_HELD = 50


class World(StaticWorld):
    """All of a game that never changes, and its initial state. Shared by every state; treat it as read-only."""

    def __init__(self, problem: Problem, rules: Rules, task: str) -> None:
        self.rules = rules
        self.task = task
        facts = list(dict.fromkeys(problem.facts))
        if len(facts) > MAX_FACTS:
            raise TooLarge(f"holds {len(facts)} facts, at most {MAX_FACTS} are played")
        _check_facts(problem, facts)
        ids = {"receptacle": set(), "object": set(), "location": set(), "agent": set()}
        entities: set[str] = set()
        for fact in facts:
            for name in fact[1:]:
                entities.add(name)
                if (kind := problem.objects[name]) in ids:
                    ids[kind].add(name)
        if len(entities) > MAX_ENTITIES:
            raise TooLarge(f"names {len(entities)} things, at most {MAX_ENTITIES} are played")
        names = display_names(entities)
        by_predicate: dict[str, list[tuple[str, ...]]] = {predicate: [] for predicate in SIGNATURES}
        for fact in facts:
            by_predicate[fact[0]].append(fact[1:])
        self.receptacle_ids, self.object_ids, self.place_ids = (
            tuple(sorted(ids[kind])) for kind in ("receptacle", "object", "location")
        )
        self.receptacles = tuple(names[i] for i in self.receptacle_ids)
        self.objects = tuple(names[i] for i in self.object_ids)
        self.places = tuple(names[i] for i in self.place_ids)
        self._receptacle_index = {name: i for i, name in enumerate(self.receptacle_ids)}
        self._object_index = {name: i for i, name in enumerate(self.object_ids)}
        self._place_index = {name: i for i, name in enumerate(self.place_ids)}
        self._read_places(by_predicate)
        self._read_properties(by_predicate)
        self.initial = self._initial_state(by_predicate)
        try:
            self.goal = compile_goal(problem, facts, self)
        except UnknownGoal as error:
            raise UnsupportedGame(f"its goal {error}") from None

    @cached_property
    def digest(self) -> str:
        """Tells games apart, the same in every process: from the ids, the places, the task and the initial state."""
        what = (self.receptacle_ids, self.object_ids, self.place_ids, self.place_of, self.rules.dialect.name, self.task)
        return hashlib.sha256(repr((what, self.initial.as_numbers())).encode("utf-8")).hexdigest()[:16]

    def index(self, kind: str, name: str) -> int:
        """The number of a receptacle, object or location id."""
        table = {"receptacle": self._receptacle_index, "object": self._object_index, "location": self._place_index}
        return table[kind][name]

    def _read_places(self, facts: dict[str, list[tuple[str, ...]]]) -> None:
        place_of: dict[int, int] = {}
        for receptacle, place in facts["receptacleatlocation"]:
            r, p = self._receptacle_index[receptacle], self._place_index[place]
            if place_of.setdefault(r, p) != p:
                raise UnsupportedGame(f"its receptacle {show(receptacle)} is at two places")
        # A receptacle without a place (-1) is never reached and never listed.
        self.place_of = tuple(place_of.get(r, -1) for r in range(len(self.receptacles)))
        at_place: list[list[int]] = [[] for _ in self.places]
        for r, p in enumerate(self.place_of):
            if p >= 0:
                at_place[p].append(r)
        self.at_place = tuple(tuple(rs) for rs in at_place)
        self.go_to = tuple(
            (f"go to {name}", Action("go", other=r)) for r, name in enumerate(self.receptacles) if self.place_of[r] >= 0
        )

    def _read_properties(self, facts: dict[str, list[tuple[str, ...]]]) -> None:
        def objects(predicate: str) -> frozenset[int]:
            return frozenset(self._object_index[args[0]] for args in facts[predicate])

        self.openable = frozenset(self._receptacle_index[args[0]] for args in facts["openable"])
        self.pickupable, self.cleanable = objects("pickupable"), objects("cleanable")
        self.heatable, self.coolable = objects("heatable"), objects("coolable")
        self.toggleable, self.sliceable = objects("toggleable"), objects("sliceable")
        self.is_container = objects("isreceptacleobject")
        inner: list[set[int]] = [set() for _ in self.object_ids]
        for thing, outer in facts["inreceptacleobject"]:
            inner[self._object_index[outer]].add(self._object_index[thing])
        self.inner = tuple(tuple(sorted(group)) for group in inner)
        self.object_types = _grouped(facts["objecttype"], self._object_index)
        self.receptacle_types = _grouped(facts["receptacletype"], self._receptacle_index)
        self.knives = frozenset(o for o, kinds in enumerate(self.object_types) if set(kinds) & set(_KNIVES))
        sinks = {"sinkbasintype", "sinktype"} if self.rules.sink_cleans else {"sinkbasintype"}

        def receptacles(types: set[str]) -> frozenset[int]:
            return frozenset(r for r, kinds in enumerate(self.receptacle_types) if set(kinds) & types)

        self.cleaners, self.heaters, self.coolers = (
            receptacles(sinks),
            receptacles({"microwavetype"}),
            receptacles({"fridgetype"}),
        )
        of_type: dict[str, set[int]] = {}
        for r, rtypes in enumerate(self.receptacle_types):
            for rtype in rtypes:
                of_type.setdefault(rtype, set()).add(r)
        takers: dict[str, set[int]] = {}
        for rtype, otype in set(facts["cancontain"]):
            takers.setdefault(otype, set()).update(of_type.get(rtype, ()))
        fits, shared = {}, {}
        for kinds in set(self.object_types):
            group = frozenset(r for kind in kinds for r in takers.get(kind, ()))
            fits[kinds] = shared.setdefault(group, group)
        self.holders = tuple(fits[kinds] for kinds in self.object_types)

    def _initial_state(self, facts: dict[str, list[tuple[str, ...]]]) -> State:
        where = set(facts["atlocation"])
        if len(where) != 1:
            raise UnsupportedGame(f"it has {len(where)} agents' places, expected one")
        ((agent, place),) = where
        if any(args[0] != agent for args in facts["holds"] + facts["holdsany"]):
            raise UnsupportedGame("it has more than one agent")
        state = State(self)
        state.place = self._place_index[place]
        o, r, p = self._object_index, self._receptacle_index, self._place_index
        inside: dict[int, set[int]] = {}
        for thing, receptacle in facts["inreceptacle"]:
            inside.setdefault(r[receptacle], set()).add(o[thing])
        state.inside = [frozenset(inside.get(i, ())) for i in range(len(self.receptacles))]
        state.held = frozenset(o[args[1]] for args in facts["holds"])
        if len(state.held) > MAX_HELD:
            raise TooLarge(f"has an agent that holds {len(state.held)} things, at most {MAX_HELD} are played")
        state.holds_any = bool(facts["holdsany"])
        state.opened = frozenset(r[args[0]] for args in facts["opened"])
        state.lying = frozenset((o[thing], p[place]) for thing, place in facts["objectatlocation"])
        for name, predicate in (("clean", "isclean"), ("hot", "ishot"), ("cool", "iscool")):
            setattr(state, name, frozenset(o[args[0]] for args in facts[predicate]))
        for name, predicate in (("sliced", "issliced"), ("toggled", "istoggled")):
            setattr(state, name, frozenset(o[args[0]] for args in facts[predicate]))
        return state


def _grouped(pairs: Iterable[tuple[str, ...]], index: dict[str, int]) -> tuple[tuple[str, ...], ...]:
    groups: list[set[str]] = [set() for _ in index]
    for name, kind in pairs:
        groups[index[name]].add(kind)
    return tuple(tuple(sorted(group)) for group in groups)


def _check_facts(problem: Problem, facts: list[tuple[str, ...]]) -> None:
    """The reference checks neither names nor types of facts: such files are for it, but for those it fails at."""
    for fact in facts:
        signature = SIGNATURES.get(fact[0])
        if signature is None:
            raise UnsupportedGame(f"its fact {show(list(fact))} is unknown")
        kinds = tuple(problem.objects[name] for name in fact[1:])
        if kinds != signature:
            got, expected = show(list(kinds)).strip("()") or "none", " ".join(signature)
            wrong = f"fact {show(list(fact))} has arguments of type {got}, expected {expected}"
            if len(kinds) < len(signature) or not set(kinds) <= KINDS:
                raise PddlError(f"the {wrong}")
            raise UnsupportedGame(f"its {wrong}")
        for name in fact[1:]:
            if name in _SPECIAL or _ODD.search(name):
                raise UnsupportedGame(f"its name {show(name)} is not an ordinary one")


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """The names the reference shows: "cabinet 3". Ids sorted upward are numbered downward."""
    ids = sorted(ids)
    bases = {}
    for name in ids:
        base, found, _ = name.partition("_bar_")
        if found and any(code in base for code in ("_minus_", "_plus_", "_dot_", "_comma_")):
            raise PddlError(f"the id {show(name)} has an encoded character before its first '_bar_'")
        bases[name] = (base + "basin" if "basin" in name else base) if found else None
    left = Counter(base for base in bases.values() if base is not None)
    names = {}
    for name in ids:
        base = bases[name]
        if base is None:
            decoded = name
            for code, char in (("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ",")):
                decoded = decoded.replace(code, char)
            names[name] = f"{decoded} "  # the reference leaves a space where the number would stand
        else:
            names[name] = f"{base} {left[base]}"
            left[base] -= 1
    return names
