"""Turns a PDDL goal into a check that costs microseconds.

A goal is a conjunction of clauses; each clause says that objects, receptacles and places exist for which some
facts hold. Facts that never change are settled once, here; what is left of a clause is a list of
alternatives, each a set of facts that may change ("object 4 is in receptacle 2").
"""

from __future__ import annotations

from dataclasses import dataclass, field

from paw_fast.envs.alfworld.pddl import SIGNATURES, PddlError, Problem, TooLarge, show, typed_names
from paw_fast.envs.alfworld.static import Goal, Literal, StaticWorld

MAX_ALTERNATIVES = 20_000  # of all clauses together; the six official task types: below 400
MAX_TRIES = 1_000_000  # of all clauses together; official goals need below 10,000
MAX_ATOMS = 100  # of all clauses together; official goals have up to 12

_CHANGING = {
    "atlocation", "inreceptacle", "objectatlocation", "opened", "holds",
    "isclean", "ishot", "iscool", "istoggled", "issliced",
}  # fmt: skip
_FIXED = {
    "receptacleatlocation",
    "objecttype",
    "receptacletype",
    "cancontain",
    "openable",
    "pickupable",
    "cleanable",
    "heatable",
    "coolable",
    "toggleable",
    "sliceable",
    "isreceptacleobject",
    "inreceptacleobject",
}


class UnknownGoal(ValueError):
    """A goal of a form this engine does not know: a clause without its subject, "its goal"."""


class _Budget:
    """What settling the whole goal may cost, in facts looked at and alternatives found."""

    def __init__(self) -> None:
        self.tries = self.alternatives = 0

    def spend(self, tries: int, alternatives: int = 0) -> None:
        self.tries += tries
        self.alternatives += alternatives
        if self.tries > MAX_TRIES or self.alternatives > MAX_ALTERNATIVES:
            raise TooLarge("the goal is too large to check")


@dataclass
class _Clause:
    variables: dict[str, str] = field(default_factory=dict)
    atoms: dict[tuple[str, ...], None] = field(default_factory=dict)
    different: dict[tuple[str, str], None] = field(default_factory=dict)


def compile_goal(problem: Problem, facts: list[tuple[str, ...]], world: StaticWorld) -> Goal:
    """Raises `UnknownGoal` for forms that are not a conjunction of existential clauses."""
    clauses: list[_Clause] = []
    ground = _Clause()
    for node in _conjuncts(problem.goal):
        if node and node[0] == "exists":
            clause = _Clause()
            _flatten(node, {}, clause)
            clauses.append(clause)
        else:
            _flatten(node, {}, ground)
    if ground.atoms or ground.different:
        clauses.append(ground)
    if sum(len(clause.atoms) + len(clause.different) + len(clause.variables) for clause in clauses) > MAX_ATOMS:
        raise TooLarge("the goal is too large to check")
    by_predicate: dict[str, list[tuple[str, ...]]] = {}
    for fact in sorted(set(facts)):
        by_predicate.setdefault(fact[0], []).append(fact[1:])
    members: dict[str, list[str]] = {}
    for name, kind in problem.objects.items():
        members.setdefault(kind, []).append(name)
    compiled, budget = [], _Budget()
    for clause in clauses:
        for atom in clause.atoms:
            _check_atom(atom, {**problem.objects, **clause.variables})
        compiled.append(_alternatives(clause, by_predicate, members, problem, world, budget))
    return Goal(tuple(compiled))


def _check_atom(atom: tuple[str, ...], kinds: dict[str, str]) -> None:
    """The reference takes every thing for an object too, so that a goal may name a receptacle where one is expected."""
    signature = SIGNATURES[atom[0]]
    if len(atom) - 1 != len(signature):
        raise PddlError(f"the goal gives {atom[0]} {len(atom) - 1} arguments, expected {len(signature)}")
    for name, kind in zip(atom[1:], signature, strict=True):
        if name not in kinds:
            raise PddlError(f"the goal names {show(name)}, which (:objects ...) does not declare")
        if kinds[name] != kind:
            raise UnknownGoal(f"has the type {show(kinds[name])} where {atom[0]} takes {kind}")


def _conjuncts(node: list) -> list[list]:
    found, rest = [], [node]
    while rest:
        node = rest.pop()
        if not isinstance(node, list) or not node:
            raise UnknownGoal("holds something that is not a formula")
        if node[0] == "and":
            rest += reversed(node[1:])
        else:
            found.append(node)
    return found


def _flatten(node: list, scope: dict[str, str], out: _Clause) -> None:
    """Adds a formula to a clause; each bound variable gets a name of its own."""
    if isinstance(node, list) and node[:1] == ["and"]:
        for child in _conjuncts(node):
            _flatten(child, scope, out)
        return
    if not isinstance(node, list) or not node or not isinstance(node[0], str):
        raise UnknownGoal("holds something that is not a formula")
    head = node[0]
    if head == "exists":
        if len(node) != 3 or not isinstance(node[1], list):
            raise UnknownGoal("has an exists without variables and one formula")
        inner = dict(scope)
        for name, kind in typed_names(node[1]).items():
            unique = f"?{len(out.variables)}{name}"
            out.variables[unique] = kind
            inner[name] = unique
        _flatten(node[2], inner, out)
    elif head == "not":
        equality = node[1] if len(node) == 2 else None
        if not isinstance(equality, list) or len(equality) != 3 or equality[0] != "=":
            raise UnknownGoal("is not one of the known forms (it has a negation)")
        out.different[_resolve(equality[1], scope), _resolve(equality[2], scope)] = None
    elif head in _CHANGING or head in _FIXED:
        out.atoms[(head, *(_resolve(item, scope) for item in node[1:]))] = None
    else:
        raise UnknownGoal(f"is not one of the known forms (it uses {show(head)})")


def _resolve(item: object, scope: dict[str, str]) -> str:
    if not isinstance(item, str):
        raise UnknownGoal("has a nested term")
    if not item.startswith("?"):
        return item
    if item not in scope:
        raise UnknownGoal(f"uses the variable {show(item)} without binding it")
    return scope[item]


def _alternatives(
    clause: _Clause,
    facts: dict[str, list[tuple[str, ...]]],
    members: dict[str, list[str]],
    problem: Problem,
    world: StaticWorld,
    budget: _Budget,
) -> tuple[frozenset[Literal], ...]:
    """All distinct sets of changing facts that make the clause true."""
    fixed = [atom for atom in clause.atoms if atom[0] in _FIXED]
    changing = [atom for atom in clause.atoms if atom[0] in _CHANGING]
    found: dict[frozenset[Literal], None] = {}

    def value(term: str, binding: dict[str, str]) -> str | None:
        return binding.get(term) if term.startswith("?") else term

    def extend(binding: dict[str, str], rest: list[tuple[str, ...]]) -> None:
        for a, b in clause.different:
            left, right = value(a, binding), value(b, binding)
            if left is not None and left == right:
                return
        if rest:
            # The atom with the fewest unbound variables first: it prunes most.
            atom = min(rest, key=lambda atom: sum(value(term, binding) is None for term in atom[1:]))
            others = [other for other in rest if other is not atom]
            known = facts.get(atom[0], ())
            budget.spend(1 + len(known))
            for args in known:
                new = _match(atom[1:], args, binding)
                if new is not None:
                    extend(new, others)
            return
        free = [name for name in clause.variables if name not in binding and any(name in a for a in changing)]
        if free:
            names = members.get(clause.variables[free[0]], ())
            budget.spend(1 + len(names))
            for name in names:
                if name in _placed(problem, world, name):
                    extend({**binding, free[0]: name}, [])
            return
        budget.spend(1, 1)
        literals = [_literal(atom, binding, world) for atom in changing]
        if None not in literals:
            found[frozenset(literals)] = None  # type: ignore[arg-type]

    extend({}, fixed)
    return tuple(found)


def _placed(problem: Problem, world: StaticWorld, name: str) -> tuple[str, ...]:
    """(name,) when the world knows the thing, () when no fact mentions it."""
    kind = problem.objects[name]
    if kind not in ("receptacle", "object", "location"):
        return (name,)
    try:
        world.index(kind, name)
    except KeyError:
        return ()
    return (name,)


def _match(terms: tuple[str, ...], args: tuple[str, ...], binding: dict[str, str]) -> dict[str, str] | None:
    """The binding under which the terms are the arguments, or None; their number and types are known to fit."""
    new = binding
    for term, arg in zip(terms, args, strict=True):
        if not term.startswith("?"):
            if term != arg:
                return None
        elif (bound := new.get(term)) is None:
            new = {**new, term: arg}
        elif bound != arg:
            return None
    return new


def _literal(atom: tuple[str, ...], binding: dict[str, str], world: StaticWorld) -> Literal | None:
    names = [binding[term] if term.startswith("?") else term for term in atom[1:]]
    numbers = []
    for name, kind in zip(names, SIGNATURES[atom[0]], strict=True):
        if kind != "agent":
            try:
                numbers.append(world.index(kind, name))
            except KeyError:
                return None  # no fact mentions it, so this one can never hold
    return atom[0], numbers[0], numbers[1] if len(numbers) > 1 else -1
