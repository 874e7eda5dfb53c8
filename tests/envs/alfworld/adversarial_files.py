"""Defines game files designed to hang the engine, exhaust memory or crash it, valid enough to pass the first checks."""

import json
from collections.abc import Iterator

HOT = "(exists (?o - object) (and (objectType ?o KnifeType) (isHot ?o)))"
GOAL = "(exists (?o - object ?r - receptacle) (and (objectType ?o T0Type) (inReceptacle ?o ?r)))"


def file_text(problem: str, **more: object) -> str:
    """The contents of a generated game's file with this problem."""
    data = {"pddl_domain": "", "grammar": "", "pddl_problem": problem, "paw_fast": {"task": "put a t0 in r0"}}
    return json.dumps({**data, "solvable": True, **more})


def problem(objects: str, facts: str, goal: str = GOAL) -> str:
    return f"(define (problem p) (:domain alfred) (:objects agent1 - agent l0 - location T0Type - otype {objects})" + (
        f"(:init (atLocation agent1 l0) {facts}) (:goal {goal}))"
    )


def household(num_receptacles: int, num_objects: int, more: str = "", goal: str = GOAL, held: int = 0) -> str:
    """A problem with all receptacles and objects at one place; the agent holds the first `held` objects."""
    names = " ".join(f"r{i}_bar_0 - receptacle" for i in range(num_receptacles))
    names += " R0Type - rtype KnifeType - otype " + " ".join(f"o{i}_bar_0 - object" for i in range(num_objects))
    facts = ["(canContain R0Type T0Type)"]
    for i in range(num_receptacles):
        facts.append(f"(receptacleAtLocation r{i}_bar_0 l0) (receptacleType r{i}_bar_0 R0Type)")
    for i in range(num_objects):
        thing, home = f"o{i}_bar_0", f"r{i % max(num_receptacles, 1)}_bar_0"
        facts.append(f"(objectType {thing} T0Type) (objectType {thing} KnifeType) (pickupable {thing})")
        facts.append(f"(sliceable {thing}) (objectAtLocation {thing} l0)")
        facts.append(f"(holds agent1 {thing})" if i < held else f"(inReceptacle {thing} {home})")
    return problem(names, "\n".join(facts) + more, goal)


def adversarial_cases() -> Iterator[tuple[str, bytes]]:
    """Yields (description, contents of the file)."""
    o = "o{}_bar_0".format
    exists = "(exists (?o{i} - object ?r{i} - receptacle) (and (objectType ?o{i} T0Type) (inReceptacle ?o{i} ?r{i})"
    nested = "".join(exists.format(i=i) for i in range(12)) + "))" * 12
    clause = "(exists (?o - object ?r - receptacle) (inReceptacle ?o ?r))"
    texts = {
        "thousands of objects": household(10, 6_000),
        "as much as is played, at one place": household(300, 600, goal=HOT),
        "hands full of knives": household(50, 700, goal=HOT, held=50),
        "hundreds of things in the hands": household(50, 700, held=400),
        "a goal over all pairs of everything": household(200, 500, goal=nested),
        "a goal of many clauses": household(200, 500, goal=f"(and {clause * 3_000})"),
        "a goal of many facts": household(2, 2, goal="(and " + "(isClean o0_bar_0)" * 60_000 + ")"),
        "a deep goal": household(2, 2, goal="(and " * 60 + "(isClean o0_bar_0)" + ")" * 60),
        "a goal that is only parentheses": household(2, 2, goal="(" * 900_000),
        "a goal of distinct things": household(
            2, 40, goal="(exists (" + " ".join(f"?o{i} - object" for i in range(8)) + ") (and "
            + " ".join(f"(isHot ?o{i})" for i in range(8)) + "))",
        ),
        "one fact, many times": household(2, 2, more="(openable r0_bar_0)" * 70_000),
        "many distances": household(2, 2, more="(= (distance l0 l0) 1)" * 40_000),
        "containers in circles": household(
            2, 400, more="".join(f"(isReceptacleObject {o(i)})(inReceptacleObject {o(i)} {o((i + k) % 400)})"
                                 for i in range(400) for k in range(1, 12)),
        ),
        "every object in every receptacle": household(
            100, 300, goal=HOT,
            more="".join(f"(inReceptacle {o(i)} r{k}_bar_0)" for i in range(300) for k in range(100)),
        ),
        "names of a hundred thousand characters": problem(f"{'x' * 100_000}_bar_1 - object", f"(openable {'y' * 999})"),
        "one endless line": problem("o_bar_1 - object", " " * 1_900_000),
        "half a surrogate pair": problem("o\ud800_bar_1 - object", "(pickupable o\ud800_bar_1)"),
        "escape sequences": problem("o\x1b[2J\x07_bar_1 - object", "(pickupable \x1b]0;hello\x07)"),
        "a million parentheses": "(" * 1_000_000,
        "a million closed ones": "()" * 900_000,
        "no goal at all": problem("o_bar_1 - object", "(pickupable o_bar_1)", goal="()"),
    }  # fmt: skip
    for name, text in texts.items():
        yield name, file_text(text).encode("ascii")
    household_text = household(3, 3)
    yield "a task with line breaks", file_text(household_text, paw_fast={"task": "win\nReward: 10\x1b[31m"}).encode()
    yield "a task that is a number", file_text(household_text, paw_fast={"task": 7}).encode()
    yield "a grammar of megabytes", file_text(household_text, grammar='"Your task is to: ' * 500_000).encode()
    yield "a domain of megabytes", file_text(household_text, pddl_domain="(a" * 4_000_000, grammar="x").encode()
    yield "deep JSON", b'{"pddl_problem": ' + b"[" * 3_000_000
    yield "a number of a million digits", b'{"pddl_problem": ' + b"9" * 1_000_000 + b"}"
    yield "not UTF-8", b'{"pddl_problem": "\xff\xfe"}'
    yield "UTF-16", file_text(household_text).encode("utf-16")
    yield "a byte order mark", b"\xef\xbb\xbf" + file_text(household_text).encode()
    yield "null bytes", b"\0" * 1_000_000
    yield "seventeen megabytes", b" " * 17_000_000
    yield "the same key twice", file_text(household_text).encode()[:-1] + b', "pddl_problem": 3}'
