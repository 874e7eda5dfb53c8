"""The expert that reads the true state: shortest plans, for proofs and upper bounds.

The goal is a conjunction of clauses with alternatives (see `goal`). For each choice of alternatives an A*
search over the engine's own states looks for the shortest way; only commands that touch the chosen objects,
their receptacles, the appliances they need and places to lay down what is in the hands are tried. The best
choice wins; choices whose lower bound is not below the best plan so far are skipped.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count, pairwise, permutations, product
from math import prod
from typing import Any

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.state import State
from paw_fast.envs.alfworld.static import Action, Literal

MAX_NODES = 200_000  # a choice of alternatives needs 10 to 2,000
MAX_CHOICES = 100_000  # the 12 official games of the test data have up to 22

_APPLIANCE = {"isclean": ("clean", "cleaners"), "ishot": ("heat", "heaters"), "iscool": ("cool", "coolers")}
_PLANNED = {"inreceptacle", "holds", "istoggled", "atlocation", *_APPLIANCE}


class Planner:
    """Plays from the true state.

    >>> from paw_fast.envs.alfworld.planner import Planner
    >>> Planner().act  # doctest: +ELLIPSIS
    <bound method Planner.act of ...>
    """

    def act(self, state: State) -> str | None:
        """The first command of a shortest plan; None when there is no plan or the goal holds already."""
        plan = self.plan(state)
        return plan[0] if plan else None

    def plan(self, state: State) -> list[str] | None:
        """The commands of a shortest plan: empty when the goal holds, None when there is no plan.

        Raises `NotImplementedError` for goals outside of the six task types (sliced objects, thousands of ways).
        """
        actions = plan_actions(state)
        if actions is None:
            return None
        twin, texts = state.clone(), []
        for action in actions:
            texts.append(next(text for text, known in engine.commands(twin).items() if known == action))
            engine.act(twin, action)
        return texts


def plan_actions(state: State) -> list[Action] | None:
    """A shortest plan as actions, empty when the goal holds, None when there is none."""
    if state.won():
        return []
    if prod(map(len, state.world.goal.clauses)) > MAX_CHOICES:
        raise NotImplementedError("no plans for goals that can be reached in more than 100,000 ways")
    choices = []
    for choice in product(*state.world.goal.clauses):
        literals = frozenset().union(*choice)
        unknown = {literal[0] for literal in literals} - _PLANNED
        if unknown:
            raise NotImplementedError(f"no plans for goals with {', '.join(sorted(unknown))}")
        bound = _Search(state, literals).bound(state)
        if bound is not None:
            choices.append((bound, _signature(state, literals), sorted(literals)))
    choices.sort(key=lambda item: (item[0], item[2]))
    best: list[Action] | None = None
    seen: set = set()
    for bound, signature, literals in choices:
        if best is not None and bound >= len(best):
            break
        if signature in seen:
            continue
        seen.add(signature)
        limit = len(best) - 1 if best is not None else None
        found = _Search(state, frozenset(literals)).run(limit)
        if found is not None:
            best = found
    return best


def _signature(state: State, literals: frozenset[Literal]) -> object:
    """Equal for choices that differ only by a goal receptacle that nothing tells apart (one of many cabinets)."""
    goals = {b for predicate, _, b in literals if predicate == "inreceptacle"}
    if len(goals) != 1 or any(literal[0] in ("atlocation", "istoggled") for literal in literals):
        return literals
    (r,) = goals
    world = state.world
    place = world.place_of[r]
    objects = sorted({a for _, a, _ in literals})
    alone = place >= 0 and len(world.at_place[place]) == 1 and place != state.place
    special = r in world.cleaners | world.heaters | world.coolers
    if not alone or special or state.inside[r] & frozenset(objects):
        return literals
    needs_opening = r in world.openable and r not in state.opened
    holds = tuple(o for o in (*objects, *sorted(state.held)) if r in world.holders[o])
    return tuple(sorted((p, a) for p, a, _ in literals)), needs_opening, holds


def _named_stops(actions: list[Action], place_of: tuple[int, ...]) -> list[Action]:
    """At a shared place, goes to the receptacle that is used next; the state is the same."""
    for i, (now, then) in enumerate(pairwise(actions)):
        if now.verb == "go" and then.other >= 0 and place_of[then.other] == place_of[now.other]:
            actions[i] = Action("go", other=then.other)
    return actions


class _Search:
    """A* for one set of facts that must all hold."""

    def __init__(self, state: State, literals: frozenset[Literal]) -> None:
        self.start, self.world = state, state.world
        self.literals = sorted(literals)
        self.targets = sorted({a for p, a, _ in literals if p in ("inreceptacle", "holds", *_APPLIANCE)})
        self.goal_receptacles = {b for p, _, b in literals if p == "inreceptacle"}
        self.goal_of = {a: b for p, a, b in literals if p == "inreceptacle"}
        self.must_hold = {a for p, a, _ in literals if p == "holds"}
        self.lamps = {a for p, a, _ in literals if p == "istoggled"}
        self.final_place = next((a for p, a, _ in literals if p == "atlocation"), None)
        self.verbs = {}
        for predicate, a, _ in self.literals:
            if predicate in _APPLIANCE:
                verb, group = _APPLIANCE[predicate]
                self.verbs.setdefault(a, []).append((verb, predicate, getattr(self.world, group)))
        self.relevant: list[int] | None = None

    def _relevant_receptacles(self) -> list[int]:
        """Receptacles worth visiting: sources, goals, appliances, lamps' places, and places to lay things down."""
        world, state = self.world, self.start
        wanted = {r for r, group in enumerate(state.inside) if any(o in group for o in (*self.targets, *self.lamps))}
        wanted |= self.goal_receptacles
        for actions in self.verbs.values():
            for _, _, appliances in actions:
                wanted |= appliances
        wanted = {r for r in wanted if world.place_of[r] >= 0}
        places = {world.place_of[r] for r in wanted} | {state.place}
        if self.final_place is not None:
            places.add(self.final_place)
        near = {r for p in places for r in world.at_place[p]}
        droppable = set(self.targets) | set(state.held)
        for o in droppable:
            classes = {}
            for r in world.holders[o] - near:
                if world.place_of[r] >= 0:
                    shut = r in world.openable and r not in state.opened
                    classes.setdefault(shut, r)
            near |= set(classes.values())
        return sorted(near)

    def bound(self, state: State) -> int | None:
        """A lower bound of the steps still needed; None when no plan can exist."""
        world, needs_take, steps = self.world, False, 0
        opens_goal: set[int] = set()
        sources_shut: list[set[int]] = []
        routes: list[list[set[int]]] = []
        free_hand = not state.holds_any
        counted_put = False
        for o in self.targets:
            receptacles = {r for r, group in enumerate(state.inside) if o in group}
            goal = self.goal_of.get(o)
            missing = [item for item in self.verbs.get(o, ()) if not state.is_true((item[1], o, -1))]
            held = o in state.held
            in_goal = goal in receptacles
            put = goal is not None and (not in_goal or (bool(missing) and receptacles == {goal} and not held))
            take = not held and (put or bool(missing) or o in self.must_hold)
            if not (put or take or missing):
                continue
            route: list[set[int]] = []
            if take:
                needs_take = True
                if o not in world.pickupable or not receptacles:
                    return None
                route.append({world.place_of[r] for r in receptacles})
                steps += 1
                if all(r in world.openable and r not in state.opened for r in receptacles):
                    sources_shut.append(receptacles)
            for _, _, appliances in missing:
                if not appliances:
                    return None
                route.append({world.place_of[r] for r in appliances})
                steps += 1
            if put:
                assert goal is not None
                if goal not in world.holders[o]:
                    return None
                route.append({world.place_of[goal]})
                steps += 1
                if goal in world.openable and goal not in state.opened and o not in state.inside[goal]:
                    opens_goal.add(goal)
                counted_put = counted_put or held
            routes.insert(0, route) if held else routes.append(route)
        if needs_take and not free_hand and not counted_put:
            steps += 1
        if any(not (group & opens_goal) for group in sources_shut):
            steps += 1
        steps += len(opens_goal) + sum(lamp not in state.toggled for lamp in self.lamps)
        return steps + self._arrivals(state, routes)

    def _arrivals(self, state: State, routes: list[list[set[int]]]) -> int:
        """The fewest "go to" that visit each route's places in order, one route after the other."""
        last = [{self.final_place}] if self.final_place is not None else []
        fewest = None
        for order in permutations(routes) if len(routes) <= 3 else (routes,):
            here, steps = {state.place}, 0
            for stop in [*(stop for route in order for stop in route), *last]:
                if here & stop:
                    here = here & stop
                else:
                    here, steps = stop, steps + 1
            if fewest is None or steps < fewest:
                fewest = steps
        return fewest or 0

    def _successors(self, state: State) -> Iterator[Action]:
        world, place = self.world, state.place
        assert self.relevant is not None
        seen_places = set()
        for r in self.relevant:
            p = world.place_of[r]
            if p != place:
                if p not in seen_places:
                    seen_places.add(p)
                    yield Action("go", other=r)
                continue
            is_open = True
            if r in world.openable and r not in state.opened:
                is_open = False
                yield Action("open", other=r)
            for o in self.targets:
                if is_open and o in state.inside[r] and not state.holds_any and o in world.pickupable:
                    yield Action("take", o, r)
            for o in self.lamps:
                if o in state.inside[r] and o in world.toggleable and o not in state.toggled:
                    yield Action("use", o, r)
            for o in state.held:
                if is_open and r in world.holders[o]:
                    yield Action("put", o, r)
                for verb, predicate, appliances in self.verbs.get(o, ()):
                    able = {"clean": world.cleanable, "heat": world.heatable, "cool": world.coolable}[verb]
                    if r in appliances and o in able and not state.is_true((predicate, o, -1)):
                        yield Action(verb, o, r)

    def run(self, limit: int | None) -> list[Action] | None:
        """The shortest plan of at most `limit` steps, or None."""
        first = self.bound(self.start)
        if first is None:
            return None
        self.relevant = self._relevant_receptacles()
        ticket = count()
        heap: list[tuple[int, int, int, State, Any]] = [(first, 0, next(ticket), self.start, None)]
        best_depth = {self.start.state_key(): 0}
        num_nodes = 0
        while heap:
            estimate, negative_depth, _, state, trail = heapq.heappop(heap)
            if limit is not None and estimate > limit:
                return None
            depth = -negative_depth
            if all(state.is_true(literal) for literal in self.literals):
                actions: list[Action] = []
                while trail is not None:
                    trail, action = trail
                    actions.append(action)
                return _named_stops(actions[::-1], self.world.place_of)
            if best_depth[state.state_key()] < depth:
                continue
            num_nodes += 1
            if num_nodes > MAX_NODES:
                raise RuntimeError(f"no plan within {MAX_NODES} states, expected at most a few thousand")
            for action in self._successors(state):
                twin = state.clone()
                engine.act(twin, action)
                key = twin.state_key()
                if best_depth.get(key, depth + 2) <= depth + 1:
                    continue
                bound = self.bound(twin)
                if bound is not None:
                    best_depth[key] = depth + 1
                    heapq.heappush(heap, (depth + 1 + bound, -(depth + 1), next(ticket), twin, (trail, action)))
        return None
