"""Mutates the facts of games into unusual ones, in which an engine could differ from the reference."""

import json
import random
import re

from paw_fast.envs.alfworld.pddl import parse_problem


def _of(facts, predicate):
    return [fact[1:] for fact in facts if fact[0] == predicate]


def _pick(rng, items, num):
    items = list(items)
    return rng.sample(items, min(num, len(items)))


def shared_places(rng, facts):
    """Some receptacles move to the place of another, with or without their contents."""
    located = _of(facts, "receptacleatlocation")
    moved = dict(_pick(rng, located, rng.randint(2, 6)))
    new = {r: rng.choice(located)[1] for r in moved}
    follow = rng.random() < 0.7
    inside = {o: r for o, r in _of(facts, "inreceptacle")}
    out = []
    for fact in facts:
        if fact[0] == "receptacleatlocation" and fact[1] in new:
            fact = (fact[0], fact[1], new[fact[1]])
        elif fact[0] == "objectatlocation" and follow and inside.get(fact[1]) in new:
            fact = (fact[0], fact[1], new[inside[fact[1]]])
        out.append(fact)
    return out


def in_two_receptacles(rng, facts):
    """Some objects are in a second receptacle too, with or without a fact that they are at its place."""
    places = dict(_of(facts, "receptacleatlocation"))
    for o, _ in _pick(rng, _of(facts, "inreceptacle"), rng.randint(1, 5)):
        r = rng.choice(sorted(places))
        facts.append(("inreceptacle", o, r))
        if rng.random() < 0.6:
            facts.append(("objectatlocation", o, places[r]))
    return facts


def opened(rng, facts):
    """Some receptacles are open initially, whether openable or not; others become not openable."""
    openable = _of(facts, "openable")
    facts += [("opened", r) for (r,) in _pick(rng, openable, rng.randint(1, 4))]
    facts += [("opened", r) for r, _ in _pick(rng, _of(facts, "receptacleatlocation"), 2)]
    gone = _pick(rng, openable, rng.randint(0, 2))
    return [fact for fact in facts if fact[0] != "openable" or fact[1:] not in gone]


def initial_states(rng, facts):
    """Some objects are hot, cool, clean, sliced or toggled initially."""
    for predicate in ("ishot", "iscool", "isclean", "issliced", "istoggled"):
        facts += [(predicate, o) for o, _ in _pick(rng, _of(facts, "inreceptacle"), rng.randint(0, 6))]
    return facts


def start_at_receptacle(rng, facts):
    """The agent starts at a receptacle's place."""
    place = rng.choice(_of(facts, "receptacleatlocation"))[1]
    return [(fact[0], fact[1], place) if fact[0] == "atlocation" else fact for fact in facts]


def holding(rng, facts):
    """The agent holds an object initially, with or without the fact `holdsAny`."""
    o = rng.choice(_of(facts, "pickupable"))[0]
    if rng.random() < 0.8:
        facts = [fact for fact in facts if fact[:2] not in (("inreceptacle", o), ("objectatlocation", o))]
    facts.append(("holds", "agent1", o))
    if rng.random() < 0.8:
        facts.append(("holdsany", "agent1"))
    return facts


def abilities(rng, facts):
    """Objects gain and lose abilities, such as lamps that can be picked up and mugs that can be toggled."""
    objects = [o for o, _ in _of(facts, "inreceptacle")]
    for predicate in ("pickupable", "toggleable", "sliceable", "cleanable", "heatable", "coolable"):
        facts += [(predicate, o) for o in _pick(rng, objects, rng.randint(0, 4))]
    gone = {(p, o) for p in ("sliceable", "isreceptacleobject") for o in _pick(rng, objects, 5)}
    return [fact for fact in facts if fact[:2] not in gone]


def containers(rng, facts):
    """Some objects contain other objects."""
    objects = sorted({o for o, _ in _of(facts, "inreceptacle")})
    for outer in _pick(rng, objects, 3):
        facts.append(("isreceptacleobject", outer))
        facts += [("inreceptacleobject", o, outer) for o in _pick(rng, objects, rng.randint(0, 3)) if o != outer]
    return facts


def misplaced(rng, facts):
    """Some objects are at a place but in no receptacle there, and some are nowhere."""
    places = [place for _, place in _of(facts, "receptacleatlocation")]
    gone = _pick(rng, _of(facts, "inreceptacle"), 3)
    facts = [fact for fact in facts if fact[0] != "inreceptacle" or fact[1:] not in gone]
    facts += [("objectatlocation", o, rng.choice(places)) for o, _ in gone[:2]]
    return facts


def extra_types(rng, facts):
    """Receptacles get a second or another type, objects a second type: sinks that cool, mugs that cut."""
    rtypes = sorted({kind for _, kind in _of(facts, "receptacletype")} | {"sinktype", "fridgetype", "microwavetype"})
    otypes = sorted({kind for _, kind in _of(facts, "objecttype")} | {"knifetype", "butterknifetype"})
    for r, kind in _pick(rng, _of(facts, "receptacletype"), rng.randint(1, 5)):
        if rng.random() < 0.4:
            facts.remove(("receptacletype", r, kind))
        facts.append(("receptacletype", r, rng.choice(rtypes)))
    sinks = [fact for fact in facts if fact[0] == "receptacletype" and fact[2] == "sinkbasintype"]
    facts += [("receptacletype", r, "sinktype") for _, r, _ in sinks]
    if sinks and rng.random() < 0.5:
        facts.remove(sinks[0])
    facts += [("objecttype", o, rng.choice(otypes)) for o, _ in _pick(rng, _of(facts, "objecttype"), rng.randint(1, 4))]
    return facts


MUTATIONS = (
    shared_places,
    in_two_receptacles,
    opened,
    initial_states,
    start_at_receptacle,
    holding,
    abilities,
    containers,
    misplaced,
    extra_types,
)


def mutate(text: str, seed: int) -> tuple[str, list[str]]:
    """Applies one to four random mutations to a game file's text; returns (JSON, names of the mutations)."""
    rng = random.Random(f"mutate {seed}")
    data = json.loads(text)
    problem = parse_problem(data["pddl_problem"])
    facts = [tuple(fact) for fact in problem.facts]
    chosen = rng.sample(MUTATIONS, rng.randint(1, 4))
    for mutation in chosen:
        facts = list(dict.fromkeys(mutation(rng, list(facts))))
    body = data["pddl_problem"]
    # Undeclared types are declared. Types that are declared as the other kind (a sink) are dropped, since such files
    # are not supported by the native engine; `nonstandard_pddl` has those.
    kinds = {"receptacletype": "rtype", "objecttype": "otype"}
    facts = [f for f in facts if f[0] not in kinds or problem.objects.get(f[2], kinds[f[0]]) == kinds[f[0]]]
    lines = "\n".join(f"({' '.join(fact)})" for fact in facts)
    missing = {fact[2]: kinds[fact[0]] for fact in facts if fact[0] in kinds and fact[2] not in problem.objects}
    names = " ".join(f"{name} - {kind}" for name, kind in sorted(missing.items()))
    body = re.sub(r"\(:objects", f"(:objects {names}", body, count=1)
    start, end = body.index("(:init"), re.search(r"\(:goal", body).start()
    data["pddl_problem"] = f"{body[:start]}(:init\n{lines}\n)\n{body[end:]}"
    return json.dumps(data), [mutation.__name__ for mutation in chosen]
