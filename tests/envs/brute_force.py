"""Breadth-first search over every command of the engine, to prove that the oracle's plans are shortest.

    python tests/envs/brute_force.py --rooms 3000 --games 60 --seed 0

Rooms: small ones with odd beginnings (things held, done already, in two places; closed, shared, missing), of all six
task types, after random commands: the search finds the shortest plan or that there is none. Games: generated ones
after random commands, where it looks for a plan that is shorter than the oracle's.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter, deque

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.games import distinct_games
from paw_fast.envs.alfworld.generate import _GOALS
from paw_fast.envs.alfworld.oracle import OracleExpert
from paw_fast.envs.alfworld.pddl import parse_problem
from paw_fast.envs.alfworld.tables import TASK_TYPES
from paw_fast.envs.alfworld.text import WHEEL, Rules
from paw_fast.envs.alfworld.world import World

TOO_MANY = "too many states"

KINDS = ("Fridge", "Microwave", "SinkBasin", "Cabinet", "Cabinet", "Desk")
OPENABLE = ("Fridge", "Microwave", "Cabinet")


def tiny_world(rng, task_type):
    """A room of three to six receptacles and two to five things, with odd beginnings; all drawn from `rng`."""
    receptacles = [(f"{kind}_bar_{i}", kind) for i, kind in enumerate(KINDS) if i < 3 or rng.random() < 0.7]
    num_places = rng.randint(3, len(receptacles))
    place = {name: f"l_bar_{rng.randrange(num_places)}" for name, _ in receptacles}
    objects = [(f"Mug_bar_{i}", "Mug") for i in range(rng.randint(1, 2) + (task_type == "pick_two_obj_and_place"))]
    objects += [(f"Book_bar_{i}", "Book") for i in range(rng.randint(0, 1))]
    objects += [("Knife_bar_0", "Knife")] * (rng.random() < 0.3)
    facts, held = [f"(atLocation agent1 l_bar_{rng.randrange(num_places)})"], False
    for name, kind in receptacles:
        facts += [f"(receptacleType {name} {kind}Type)", f"(receptacleAtLocation {name} {place[name]})"]
        if kind in OPENABLE and rng.random() < 0.8:
            facts += [f"(openable {name})"] + [f"(opened {name})"] * (rng.random() < 0.3)
        for kept in ("Mug", "Book", "Knife"):
            if rng.random() < 0.75:
                facts.append(f"(canContain {kind}Type {kept}Type)")
    for name, kind in objects:
        facts += [f"(objectType {name} {kind}Type)", f"(pickupable {name})"]
        facts += [f"({fact} {name})" for fact in ("cleanable", "heatable", "coolable") if rng.random() < 0.95]
        facts += [f"({fact} {name})" for fact in ("isClean", "isHot", "isCool") if rng.random() < 0.1]
        facts += [f"(sliceable {name})"] * (kind == "Mug" and rng.random() < 0.3)
        if not held and rng.random() < 0.25:
            held = True
            facts += [f"(holds agent1 {name})", "(holdsAny agent1)"]
            homes = rng.sample(receptacles, rng.random() < 0.2)
        else:
            homes = rng.sample(receptacles, 1 + (rng.random() < 0.15))
        for home, _ in homes:
            facts += [f"(inReceptacle {name} {home})", f"(objectAtLocation {name} {place[home]})"]
    lamp_home = rng.choice(receptacles)[0]
    facts += ["(objectType Lamp_bar_1 LampType)", "(toggleable Lamp_bar_1)", f"(inReceptacle Lamp_bar_1 {lamp_home})"]
    facts += ["(isToggled Lamp_bar_1)"] * (rng.random() < 0.2)
    goal = _GOALS[task_type].format(o="Mug", r="Lamp" if task_type == "look_at_obj_in_light" else rng.choice(KINDS))
    names = "agent1 - agent MugType BookType KnifeType LampType - otype Lamp_bar_1 - object "
    names += " ".join(f"{kind}Type - rtype" for kind in sorted(set(KINDS)))
    names += "".join(f" {name} - receptacle" for name, _ in receptacles)
    names += "".join(f" {name} - object" for name, _ in objects)
    names += "".join(f" l_bar_{i} - location" for i in range(num_places))
    text = f"(define (:objects {names}) (:init {' '.join(facts)}) (:goal (and {goal})))"
    return World(parse_problem(text), Rules(WHEEL), "?")


def shortest(state, most, below=None):
    """The length of a shortest plan by breadth-first search over all commands; None when there is none.

    `TOO_MANY` when more than `most` states are reached. below: looks for plans shorter than that only.
    """
    queue, seen = deque([(state, 0)]), {state.state_key()}
    while queue:
        state, depth = queue.popleft()
        if state.won():
            return depth
        if below is not None and depth + 1 >= below:
            continue
        for action in engine.commands(state).values():
            twin = state.clone()
            engine.act(twin, action)
            if (key := twin.state_key()) not in seen:
                if len(seen) >= most:
                    return TOO_MANY
                seen.add(key)
                queue.append((twin, depth + 1))
    return None


def wander(state, rng, most):
    """Plays up to `most` random commands, those that change things three times as often."""
    for _ in range(rng.randint(0, most)):
        commands = list(engine.commands(state))
        doing = [c for c in commands if c.split(" ")[0] not in ("look", "inventory", "help", "examine")]
        engine.play(state, rng.choice(doing if doing and rng.random() < 0.75 else commands))
    return state


def check_plan(state, plan):
    """A plan's commands are admissible one after the other, and the last one wins, no earlier one."""
    state = state.clone()
    for command in plan:
        assert not state.won(), plan
        assert command in engine.commands(state), (command, plan)
        engine.play(state, command)
    assert state.won(), plan


def check_room(rng, task_type, most=2_500):
    """A drawn room after drawn commands: the oracle against the search. Returns the length, None or `TOO_MANY`."""
    state = wander(tiny_world(rng, task_type).initial.clone(), rng, 12)
    expected = shortest(state, most)
    if expected == TOO_MANY:
        return expected
    plan = OracleExpert().plan(state)
    assert (None if plan is None else len(plan)) == expected, (plan, expected, engine.introduction(state))
    if plan is not None:
        check_plan(state, plan)
    return expected


def check_game(game, rng, most=60_000):
    """A generated game after drawn commands: no plan is shorter. Returns the length or `TOO_MANY`."""
    world = World(parse_problem(game.problem), Rules(WHEEL), game.sentence)
    state = wander(world.initial.clone(), rng, 25)
    plan = OracleExpert().plan(state)
    assert plan is not None, (game.sentence, engine.introduction(state))
    check_plan(state, plan)
    found = shortest(state, most, below=len(plan)) if plan else None
    if found == TOO_MANY:
        return found
    assert found is None, (plan, found)
    return len(plan)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=3_000)
    parser.add_argument("--games", type=int, default=60)
    parser.add_argument("--size", default="small")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, rooms, games = time.monotonic(), Counter(), Counter()
    for i in range(options.rooms):
        found = check_room(random.Random(f"{options.seed} {i}"), TASK_TYPES[i % 6], 30_000)
        rooms[found if isinstance(found, str) else "no plan" if found is None else "shortest plan"] += 1
    for i, game in enumerate(distinct_games(options.seed, options.size, "train", options.games)):
        found = check_game(game, random.Random(f"{options.seed} {i}"))
        games[found if isinstance(found, str) else "shortest plan"] += 1
    print(json.dumps({"rooms": rooms, "games": games, "wall_s": round(time.monotonic() - started)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
