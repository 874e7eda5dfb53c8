"""Verifies with breadth-first search that the planner's plans are shortest.

    python tests/envs/alfworld/brute_force.py --rooms 3000 --games 120 --data ../shared/data/alfworld --seed 0

Rooms are small worlds of all six task types with unusual initial states (held objects, facts of the goal that already
hold, objects in two receptacles, shared places, missing abilities), after random commands: the search finds a plan of
the same length, or none either. Games are generated and official ones, from their initial state and after random
commands: the search finds no shorter plan. The search omits commands that no shortest plan needs (`ReducedSearch` has
the proof); in rooms with few states, a second search over all commands must agree.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter, deque
from pathlib import Path

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.games import distinct_games, load_world
from paw_fast.envs.alfworld.generate import _GOALS
from paw_fast.envs.alfworld.pddl import parse_problem
from paw_fast.envs.alfworld.planner import Planner
from paw_fast.envs.alfworld.state import State
from paw_fast.envs.alfworld.tables import TASK_TYPES
from paw_fast.envs.alfworld.text import WHEEL, Rules
from paw_fast.envs.alfworld.world import World

TOO_MANY_STATES = "too many states"
MAX_REDUCED_STATES = 300_000  # of a `ReducedSearch`

KINDS = ("Fridge", "Microwave", "SinkBasin", "Cabinet", "Cabinet", "Desk")
OPENABLE = ("Fridge", "Microwave", "Cabinet")


def tiny_world(rng, task_type):
    """A random room of three to six receptacles and two to five objects, with an unusual initial state."""
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


class ReducedSearch:
    """The commands that a shortest plan may need, and the key that identifies equivalent states. Proof:

    1. For goals of the six types, only `place`, `inside`, `held`, `holds_any`, `opened` and the facts in the goal
       (isHot of the goal's objects and so on) determine whether the goal holds, which commands are admissible (except
       slice and examine, which change none of these), and their effects on these. So states that are equal in these
       have plans of the same length, and it suffices to expand one of them: `key`.
    2. If at most one object is held, and `holds_any` holds if and only if one is (which commands preserve), an object
       that is neither in the goal nor held need not be moved: between taking it and putting it down, no other object
       is taken or put down, so the plan without these two commands is valid too. Nor need it be cleaned, heated or
       cooled.
    3. `close` is not needed: only `open` needs a closed receptacle, and both can be omitted.

    `applies` tells whether 1 and 2 apply; if not, all commands and all facts are used.
    """

    def __init__(self, state):
        literals = {literal for clause in state.world.goal.clauses for facts in clause for literal in facts}
        self.applies = not {literal[0] for literal in literals} & {"objectatlocation", "issliced", "opened"}
        self.applies &= len(state.held) <= 1 and state.holds_any == bool(state.held)
        self.things = {a for p, a, _ in literals if p not in ("atlocation", "opened")} | state.held
        goal = {name: frozenset(a for p, a, _ in literals if p == f"is{name}") for name in ("clean", "hot", "cool")}
        self.goal = {**goal, "toggled": frozenset(a for p, a, _ in literals if p == "istoggled")}

    def key(self, state):
        if not self.applies:
            return state.state_key()
        facts = tuple(getattr(state, name) & things for name, things in self.goal.items())
        return state.place, state.held, state.opened, tuple(state.inside), facts

    def actions(self, state):
        found = engine.commands(state).values()
        if not self.applies:
            return found
        return [a for a in found if a.verb in ("go", "open") or (a.verb in _DOES and a.thing in self.things)]


_DOES = ("take", "put", "clean", "heat", "cool", "use")


def shortest(state, max_states, below=None, reduced=None):
    """The length of a shortest plan, by breadth-first search over all commands; None if there is no plan.

    Returns `TOO_MANY_STATES` if more than `max_states` states are reached. below: search only for shorter plans.
    reduced: try only the commands of this `ReducedSearch`.
    """
    key_of = reduced.key if reduced else State.state_key
    queue, seen = deque([(state, 0)]), {key_of(state)}
    while queue:
        state, depth = queue.popleft()
        if state.won():
            return depth
        if below is not None and depth + 1 >= below:
            continue
        for action in reduced.actions(state) if reduced else engine.commands(state).values():
            successor = state.clone()
            engine.act(successor, action)
            if (key := key_of(successor)) not in seen:
                if len(seen) >= max_states:
                    return TOO_MANY_STATES
                seen.add(key)
                queue.append((successor, depth + 1))
    return None


def random_walk(state, rng, max_commands):
    """Executes up to `max_commands` random commands; three quarters of them change the state if possible."""
    for _ in range(rng.randint(0, max_commands)):
        commands = list(engine.commands(state))
        doing = [c for c in commands if c.split(" ")[0] not in ("look", "inventory", "help", "examine")]
        engine.play(state, rng.choice(doing if doing and rng.random() < 0.75 else commands))
    return state


def check_plan(state, plan):
    """Asserts that the commands of a plan are admissible and that exactly the last one reaches the goal."""
    state = state.clone()
    for command in plan:
        assert not state.won(), plan
        assert command in engine.commands(state), (command, plan)
        engine.play(state, command)
    assert state.won(), plan


def check_room(rng, task_type, max_states=2_500):
    """Compares the planner with the search in a random room after random commands.

    Returns (length, None or `TOO_MANY_STATES`; whether the search over all commands finished too). Both must agree.
    """
    state = random_walk(tiny_world(rng, task_type).initial.clone(), rng, 12)
    expected = shortest(state, MAX_REDUCED_STATES, reduced=ReducedSearch(state))
    by_all = shortest(state, max_states)
    assert TOO_MANY_STATES in (expected, by_all) or expected == by_all, (expected, by_all, engine.introduction(state))
    if expected == TOO_MANY_STATES:
        return expected, False
    plan = Planner().plan(state)
    assert (None if plan is None else len(plan)) == expected, (plan, expected, engine.introduction(state))
    if plan is not None:
        check_plan(state, plan)
    return expected, by_all != TOO_MANY_STATES


def check_game(world, rng, max_commands=25):
    """Asserts that no plan is shorter in a game after random commands.

    Returns the length of the plan, None if there is none, or `TOO_MANY_STATES`.
    """
    state = random_walk(world.initial.clone(), rng, max_commands)
    plan = Planner().plan(state)
    below = None
    if plan is not None:
        check_plan(state, plan)
        below = len(plan)
    found = shortest(state, MAX_REDUCED_STATES, below, ReducedSearch(state)) if plan or plan is None else None
    if found == TOO_MANY_STATES:
        return found
    assert found is None, (plan, found, engine.introduction(state))
    return below


def _kind(found):
    return found if isinstance(found, str) else "no plan" if found is None else "shortest plan"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=3_000)
    parser.add_argument("--games", type=int, default=60)
    parser.add_argument("--size", default="small")
    parser.add_argument("--data", type=Path, help="a folder of official games to check as well")
    parser.add_argument("--starts", type=int, default=6, help="states per game: the initial one and later ones")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, rooms, games, official = time.monotonic(), Counter(), Counter(), Counter()
    for i in range(options.rooms):
        found, by_all = check_room(random.Random(f"{options.seed} {i}"), TASK_TYPES[i % 6])
        rooms[_kind(found)] += 1
        rooms["of these by all commands as well"] += by_all
    for i, game in enumerate(distinct_games(options.seed, options.size, "train", options.games)):
        world = World(parse_problem(game.problem), Rules(WHEEL), game.sentence)
        games[_kind(check_game(world, random.Random(f"{options.seed} {i}")))] += 1
    for path in sorted(options.data.glob("**/game.tw-pddl")) if options.data else ():
        for i in range(options.starts):
            rng = random.Random(f"{options.seed} {path.parent.parent.name} {i}")
            official[_kind(check_game(load_world(path), rng, 25 if i else 0))] += 1
    result = {"rooms": rooms, "games": games, "official": official}
    print(json.dumps({**result, "wall_s": round(time.monotonic() - started)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
