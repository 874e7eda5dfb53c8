"""Rewrites game files in nonstandard PDDL: what the reference accepts, the native engine must support or refuse.

`mutations` changes the facts of a game; this module changes how the file expresses them: arguments of other types,
unknown predicates, invalid facts, unusual names, goals of other forms, and unusual syntax.
"""

import json
import random
import re

from paw_fast.envs.alfworld.pddl import parse_problem


class _Game:
    """A problem's text, and random choices among the names in it."""

    def __init__(self, text, rng):
        self.text, self.rng = text, rng
        problem = parse_problem(text)
        self.by_kind = {}
        for name, kind in sorted(problem.objects.items()):
            self.by_kind.setdefault(kind, []).append(name)
        used = sorted({(fact[0], *fact[1:]) for fact in problem.facts})
        self.lying = [fact[1:] for fact in used if fact[0] == "inreceptacle"]
        self.placed = [fact[1:] for fact in used if fact[0] == "receptacleatlocation"]
        self.types = [fact[2] for fact in used if fact[0] == "objecttype"]

    def draw(self, kind):
        return self.rng.choice(self.by_kind.get(kind, ["agent1"]))

    def thing(self):
        return self.rng.choice(self.lying)[0]

    def receptacle(self):
        return self.rng.choice(self.placed)[0]

    def place(self):
        return self.rng.choice(self.placed)[1]

    def add(self, fact):
        self.text = self.text.replace("(:init", f"(:init {fact}", 1)

    def declare(self, names, last=False):
        """Declares more names, before the others, or after them, where they have the last type or none."""
        if last:
            start = self.text.index("(:objects")
            end = self.text.index(")", start)
            self.text = f"{self.text[:end]} {names} {self.text[end:]}"
        else:
            self.text = self.text.replace("(:objects", f"(:objects {names}", 1)

    def set_goal(self, formula):
        start = re.search(r"\(:goal", self.text).start()
        self.text = f"{self.text[:start]}(:goal {formula}))"

    def goal(self):
        start = re.search(r"\(:goal", self.text).end()
        return self.text[start:].rstrip()[:-1].rstrip()[:-1]


def other_types(game):
    """Adds facts whose arguments do not have the types in the domain."""
    game.add(game.rng.choice((
        f"(receptacleType {game.receptacle()} {game.draw('otype')})",
        f"(objectType {game.thing()} {game.draw('rtype')})",
        f"(canContain {game.draw('otype')} {game.draw('rtype')})",
        f"(inReceptacle {game.receptacle()} {game.receptacle()}) (pickupable {game.receptacle()})",
        f"(openable {game.thing()})",
        f"(opened {game.thing()})",
        f"(holds agent1 {game.receptacle()})",
        f"(objectAtLocation {game.receptacle()} {game.place()})",
        f"(isHot {game.place()})",
        f"(checked {game.rng.choice(('agent1', game.place(), game.receptacle()))})",
    )))  # fmt: skip


def other_facts(game):
    """Adds unknown predicates, wrong numbers of arguments, negations, and items that are not facts."""
    game.add(game.rng.choice((
        "(flying agent1)", "(flying)", "(agent agent1)", f"(object {game.receptacle()})", "x", "xy", "()", "(openable)",
        f"(openable {game.receptacle()} {game.receptacle()})", f"(not (opened {game.receptacle()}))",
        f"(not (flying {game.receptacle()}))", f"(inReceptacle {game.thing()})", f"(isOn {game.thing()})",
        f"(full {game.receptacle()}) (wasInReceptacle {game.thing()} {game.receptacle()}) (moveable {game.thing()})",
        f"(holdsAnyReceptacleObject agent1) (examined {game.place()}) (isReceptacleObjectFull {game.thing()})",
    )))  # fmt: skip


def distances(game):
    """Adds assignments, also of entities that occur in no fact."""
    game.declare("mug_bar_0 - object loc_bar_0 - location cabinet_bar_0 - receptacle")
    game.add(f"(= (distance {game.place()} loc_bar_0) {game.rng.choice(('5', '0', '5.5', '12'))})")
    game.add(game.rng.choice(("(= (total-cost) 0)", "(= (distance mug_bar_0 cabinet_bar_0) 1)", "(= x 2)", "(= x y)")))


def declarations(game):
    """Declares names without a type, with two types, twice, or without use, and second agents and places."""
    kind = game.rng.randrange(8)
    if kind == 0:
        game.declare("mug_bar_0 cup_bar_0", last=True)
    elif kind == 1:
        game.declare("mug_bar_0 - object - receptacle")
    elif kind == 2:
        game.declare(
            game.rng.choice(("ghost_bar_1 - spook", "agent0 - agent", "agent1 - agent", "mug_bar_00 - object"))
        )
    elif kind == 3:
        game.declare("agent2 - agent")
        game.add(f"(atLocation agent2 {game.place()})")
    elif kind == 4:
        game.add(f"(receptacleAtLocation {game.receptacle()} {game.place()})")
    elif kind == 5:
        game.add(f"(atLocation agent1 {game.place()})")
    elif kind == 6:
        game.text = game.text.replace("- object", " ", 1)
    else:
        game.text = game.text.replace("- object", "- object - object", 1)


def sections(game):
    """Adds, duplicates and reorders sections."""
    body = game.text.rstrip()[:-1]
    tail = game.rng.choice(("(:metric minimize (total-cost))", "(:goal (and))", "(:fun)", "(:metric) (:metric)", "x"))
    if game.rng.random() < 0.7:
        game.text = f"{body} {tail} {tail if game.rng.random() < 0.5 else ''})"
    else:
        more = game.rng.choice(("(:requirements :adl) (:objects", "(:init) (:objects", "(:fun) (:objects"))
        game.text = game.text.replace("(:objects", more, 1)


def spelling(game):
    """Removes spaces before question marks, or adds comments, capitals, unusual white space or nesting."""
    kind = game.rng.randrange(5)
    if kind == 0:
        game.set_goal(re.sub(r"\s+\?", "?", game.goal()))
    elif kind == 1:
        game.add(f"{game.rng.choice(('; ü ( ', ';;', '; (openable x)', ';' + chr(0xD800)))}\n")
    elif kind == 2:
        game.text = game.text.upper()
    elif kind == 3:
        game.text = game.text.replace(" ", game.rng.choice(("\t", "\r\n ", "\x0b", " \x1c ", "\xa0")))
    else:
        depth = game.rng.choice((5, 70, 200, 450, 600))
        game.set_goal("(and " * depth + game.goal() + ")" * depth)


def names(game):
    """Gives an object, receptacle or place an unusual name."""
    old = game.rng.choice((game.thing(), game.receptacle(), game.place()))
    new = game.rng.choice((
        "i", "p", "thing", "a_minus_b", "sink_bar_basin_1", "_bar_1", "#mug#_bar_1", "{mug}_bar_1", "mug,_bar_1", "ö",
        "mu'g_bar_1", 'mu"g_bar_1', "mug_minus_x_bar_1", "mug_bar_1_bar_2", "receptacle", "agent", "m" * 300 + "_bar_1",
        "mug\\n_bar_1", "=", "not", "1", "cabinet_bar__plus_99", "mug-1", "[mug]_bar_1", "|", "mug/1_bar_2",
    ))  # fmt: skip
    game.text = re.sub(rf"(?<![^\s()]){re.escape(old)}(?![^\s()])", lambda _: new, game.text, flags=re.IGNORECASE)


def goals(game):
    """Replaces the goal by one of another form; the native engine supports about half of them."""
    o, r, place, otype = game.thing(), game.receptacle(), game.place(), game.rng.choice(game.types)
    exists = f"(exists (?o - object ?r - receptacle) (and (objectType ?o {otype}) (inReceptacle ?o ?r)"
    game.set_goal(game.rng.choice((
        "(and)", "()", "(or)", f"(inReceptacle {o} {r})", f"(atLocation agent1 {place})", f"(opened {r})",
        f"(isHot {o})", f"(holds agent1 {o})", f"{exists} (opened ?r)))", f"{exists} (not (= ?o {o}))))",
        f"{exists} (not (= ?o ?r))))",
        f"{exists} (= ?o {o})))", f"(not (opened {r}))", "(not (exists (?r - receptacle) (opened ?r)))",
        "(exists (?o - object) (opened ?o))", "(exists (?l - object) (atLocation agent1 ?l))",
        f"(exists (?r - object) (and (receptacleAtLocation ?r {place}) (opened ?r)))", f"(isSliced {o})",
        "(exists (?a - agent ?l - location) (and (atLocation ?a ?l)))", f"(and (isToggled {o}) (isClean {o}))",
        f"(or (opened {r}) (isHot {o}))", f"(imply (opened {r}) (isHot {o}))", f"(checked {r})", "(holdsAny agent1)",
        "(forall (?r - receptacle) (or (not (openable ?r)) (opened ?r)))", f"{exists} (isHot ?x)))", "(isHot ?x)",
        f"{exists} (not (= ?o ?x))))", f"{exists} (isHot ghost)))", f"(exists (?o) (and (objectType ?o {otype})))",
        f"(exists (?r - receptacle ?o) (and (inReceptacle ?o ?r) (objectType ?o {otype}) (opened ?r)))",
        f"(exists (?o - object) (exists (?o - receptacle) (and (opened ?o) (inReceptacle {o} ?o))))",
        f"(exists (?o ?p - object ?r - receptacle) (and (inReceptacle ?o ?r) (inReceptacle ?p ?r) (not (= ?o ?p))"
        f" (objectType ?o {otype}) (objectType ?p {otype})))",
        f"(and (exists (?r - receptacle) (inReceptacle {o} ?r)) (exists (?r - receptacle) (opened ?r)))",
        f"(and {f'(opened {r}) ' * 150} (atLocation agent1 {place}))", f"(objectAtLocation {o} {place})",
        f"(exists (?r - receptacle) (and (inReceptacle ?r {r})))", f"(isHot {o} {o})", f"(object {o})", "(flies x)",
        f"(exists () (opened {r}))", f"(exists (?o - object) (isHot {o}) (isHot {o}))",
        f"(exists (?s - spook) (isHot {o}))",
    )))  # fmt: skip


REWRITES = (other_types, other_facts, distances, declarations, sections, spelling, names, goals)


def rewrite_nonstandard(text: str, seed: int) -> tuple[str, str]:
    """Applies one of `REWRITES` to a game file's text, cycling with `seed`; returns (JSON, name of the rewrite)."""
    game = _Game(json.loads(text)["pddl_problem"], random.Random(f"strange {seed}"))
    way = REWRITES[seed % len(REWRITES)]
    way(game)
    return json.dumps({**json.loads(text), "pddl_problem": game.text}), way.__name__
