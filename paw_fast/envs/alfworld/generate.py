"""Generates ALFWorld games with four room types and six task types, each verified by executing a shortest plan.

A game depends only on (seed, size, split, number), so that generating more games does not change earlier ones. A
room's receptacles depend only on (seed, size, scene number), so that unseen rooms have unseen layouts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from paw_fast.envs.alfworld import engine
from paw_fast.envs.alfworld.pddl import parse_problem
from paw_fast.envs.alfworld.planner import plan_actions
from paw_fast.envs.alfworld.tables import (
    APPLIANCES,
    CLEANABLE,
    CONTAINERS,
    COOLABLE,
    HEATABLE,
    HOLDS,
    LAMP_STANDS,
    LAMPS,
    MINI_ROOMS,
    MINI_TASK_TYPES,
    OPENABLE,
    PLACEMENT_WEIGHTS,
    ROOMS,
    SENTENCES,
    SLICEABLE,
    TASK_TYPES,
    UNSEEN_ROOMS,
    RoomKind,
)
from paw_fast.envs.alfworld.text import WHEEL, Rules
from paw_fast.envs.alfworld.world import World

GENERATOR_VERSIONS = {"mini": 1, "small": 1, "medium": 2, "full": 2}  # incremented when the games of a seed change
SPLITS = ("train", "valid_seen", "valid_unseen")
_RULES = Rules(WHEEL)
# The reference's domain refers to these types, so each problem must declare them.
_TYPES_IN_DOMAIN = ("SinkBasin", "Microwave", "Fridge"), ("Knife", "ButterKnife")


@dataclass(frozen=True)
class Receptacle:
    """A receptacle: PDDL id, type, PDDL id of its place, and whether it can be opened."""

    pddl_id: str
    kind: str
    place: str
    openable: bool


@dataclass(frozen=True)
class Game:
    """A generated game. `folder` is its path relative to the split's folder."""

    version: int
    task_type: str
    target: str
    goal: str
    scene: int
    folder: str
    sentence: str
    problem: str
    plan: tuple[str, ...]
    fingerprint: tuple


def make_game(seed: int, size: str, split: str, number: int, attempt: int = 0) -> Game:
    """Generates game `number` of a split; another `attempt` is another sample, used to replace duplicates."""
    task_types = MINI_TASK_TYPES if size == "mini" else TASK_TYPES
    task_type = task_types[number % len(task_types)]
    while True:
        rng = random.Random(f"paw-fast alfworld {GENERATOR_VERSIONS[size]} {seed} {size} {split} {number} {attempt}")
        game = _draw(rng, seed, size, split, task_type)
        if game is not None:
            return game
        attempt += 1000


@lru_cache(maxsize=512)
def room(seed: int, size: str, kind: RoomKind, scene: int) -> tuple[Receptacle, ...]:
    """The receptacles of a room, which all its games share."""
    rng = random.Random(f"paw-fast room {GENERATOR_VERSIONS[size]} {seed} {size} {scene}")
    least, most = kind.num_receptacles[size]
    num = rng.randint(least, most)
    types = list(kind.required) + (list(kind.required_full) if size == "full" else [])
    limit = {"mini": 1, "small": 1, "medium": 2, "full": 3}[size]
    while len(types) < num:
        pool = [
            (name, kind.full_weights.get(name, row[0]) if size == "full" else row[0])
            for name, row in kind.optional.items()
            if types.count(name) < row[limit]
        ]
        if not pool:
            break
        names, weights = zip(*pool, strict=True)
        types.append(rng.choices(names, weights)[0])
    rng.shuffle(types)
    shared = {"mini": 0.0, "small": 0.0, "medium": 0.06, "full": 0.1}[size]
    # Share of drawers and cabinets that cannot be closed.
    always_open = {"mini": 0.0, "small": 0.0, "medium": 0.1, "full": 0.25}[size]
    receptacles, places = [], []
    for kind_name in types:
        if not places or rng.random() >= shared:
            places.append(
                f"loc_bar_{_code(rng.randint(-12, 12))}_bar_{_code(rng.randint(-12, 12))}_bar_{len(places)}_bar_45"
            )
        openable = kind_name in OPENABLE and not (kind_name in ("Cabinet", "Drawer") and rng.random() < always_open)
        receptacles.append(Receptacle(_pddl_id(rng, kind_name), kind_name, places[-1], openable))
    return tuple(receptacles)


def _code(number: int) -> str:
    return f"_minus_{-number}" if number < 0 else str(number)


def _pddl_id(rng: random.Random, kind: str) -> str:
    """A PDDL id in the format of the official games: the type, then three coordinates."""
    parts = [kind.removesuffix("Basin")]
    for low, high in ((-350, 350), (0, 250), (-350, 350)):
        value = rng.randint(low, high)
        sign = "_minus_" if value < 0 else "_plus_"
        parts.append(f"{sign}{abs(value) // 100:02d}_dot_{abs(value) % 100:02d}")
    if kind.endswith("Basin"):
        parts.append(kind)
    return "_bar_".join(parts)


def _draw(rng: random.Random, seed: int, size: str, split: str, task_type: str) -> Game | None:
    rooms = MINI_ROOMS if size == "mini" else ROOMS
    kind = rng.choice([kind for kind in rooms if task_type in kind.tasks])
    unseen = split == "valid_unseen"
    scenes = [scene for scene in kind.scenes if (scene % 100 in UNSEEN_ROOMS) == unseen]
    scene = rng.choice(scenes)
    receptacles = room(seed, size, kind, scene)
    chosen = _choose_task(rng, task_type, kind, receptacles)
    if chosen is None:
        return None
    target, goal = chosen
    objects = _place_objects(rng, size, task_type, target, goal, kind, receptacles)
    if objects is None:
        return None
    problem = _problem_text(rng, task_type, target, goal, receptacles, objects)
    sentence = rng.choice(SENTENCES[task_type]).format(o=target.lower(), r=goal.lower())
    world = World(parse_problem(problem), _RULES, sentence)
    actions = plan_actions(world.initial)
    if not actions:
        return None
    state, plan = world.initial.clone(), []
    for action in actions:
        plan.append(next(text for text, known in engine.commands(state).items() if known == action))
        engine.act(state, action)
    if not state.won():
        raise AssertionError(f"the plan for {sentence!r} does not reach the goal: {plan}")
    name = f"{task_type}-{target}-None-{goal}-{scene}"
    trial = f"trial_G{rng.getrandbits(60):015x}"
    contents = tuple(sorted((kind_name, where) for _, kind_name, where in objects))
    return Game(
        GENERATOR_VERSIONS[size], task_type, target, goal, scene, f"{name}/{trial}", sentence, problem, tuple(plan),
        (task_type, target, goal, scene, contents),
    )  # fmt: skip


def _choose_task(
    rng: random.Random, task_type: str, kind: RoomKind, receptacles: tuple[Receptacle, ...]
) -> tuple[str, str] | None:
    """Samples (object type, goal receptacle type or lamp type) among those that the room allows, or None."""
    present = sorted({r.kind for r in receptacles})
    appliance, workable = APPLIANCES.get(task_type, (None, frozenset(kind.objects)))
    if appliance is not None and appliance not in present:
        return None
    options: dict[str, list[str]] = {}
    if task_type == "look_at_obj_in_light":
        if not set(present) & set(LAMP_STANDS):
            return None
        lamps: list[str] = ["DeskLamp"] if kind.name == "bedroom" else list(LAMPS)
        options = {o: lamps for o in kind.objects if any(o in HOLDS[r] for r in present)}
    else:
        for o in kind.objects:
            homes = [r for r in present if o in HOLDS[r]]
            goals = [r for r in homes if r != appliance and any(h not in (r, appliance) for h in homes)]
            if o in workable and goals:
                options[o] = goals
    if not options:
        return None
    target = rng.choice(sorted(options))
    return target, rng.choice(options[target])


def _place_objects(
    rng: random.Random,
    size: str,
    task_type: str,
    target: str,
    goal: str,
    kind: RoomKind,
    receptacles: tuple[Receptacle, ...],
) -> list[tuple[str, str, int]] | None:
    """Samples (PDDL id, type, receptacle index) of each object; targets are never in receptacles of the goal type.

    Returns None if the target fits nowhere, or if two PDDL ids are equal.
    """
    appliance = APPLIANCES.get(task_type, (None,))[0]
    homes: dict[str, list[int]] = {}

    def places_for(o: str) -> list[int]:
        if o not in homes:
            homes[o] = [
                i
                for i, r in enumerate(receptacles)
                if o in HOLDS[r.kind] and r.kind != appliance and not (o == target and r.kind == goal)
            ]
        return homes[o]

    uniform = size in ("mini", "small")  # objects are placed with equal probabilities, and types may repeat
    num_targets = rng.randint(1, 2) if uniform else rng.randint(1, 4)
    if task_type == "pick_two_obj_and_place":
        num_targets = max(2, num_targets + uniform)

    def place_for(o: str) -> int:
        if uniform:
            return rng.choice(places_for(o))
        return rng.choices(places_for(o), [PLACEMENT_WEIGHTS.get(receptacles[i].kind, 1) for i in places_for(o)])[0]

    if not places_for(target):
        return None
    found = [(_pddl_id(rng, target), target, place_for(target)) for _ in range(num_targets)]
    num_objects = max(rng.randint(*kind.num_objects[size]), num_targets)
    others = [o for o in kind.objects + kind.objects_full * (size == "full") if o != target and places_for(o)]
    if not uniform:
        others = rng.sample(others, min(len(others), round(kind.types_per_object * num_objects) - 1))
    counts = dict.fromkeys(others, 0)
    most = {"mini": 2, "small": 2, "medium": 2, "full": 3}[size]
    while len(found) < num_objects:
        pool = [o for o in others if counts[o] < most]
        if not pool:
            break
        unused = [o for o in pool if counts[o] == 0] if not uniform else []
        o = rng.choice(unused or pool)
        counts[o] += 1
        found.append((_pddl_id(rng, o), o, place_for(o)))
    if goal in LAMPS:
        stands = [i for i, r in enumerate(receptacles) if r.kind in LAMP_STANDS]
        found.append((_pddl_id(rng, goal), goal, rng.choice(stands)))
    return found if len({item[0] for item in found}) == len(found) else None


_GOALS = {
    "pick_and_place_simple": "(exists (?r - receptacle) (exists (?o - object) (and (inReceptacle ?o ?r) "
    "(objectType ?o {o}Type) (receptacleType ?r {r}Type))))",
    "look_at_obj_in_light": "(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and "
    "(objectType ?ot {r}Type) (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) "
    "(inReceptacle ?ot ?r))) (exists (?o - object ?a - agent) (and (objectType ?o {o}Type) (holds ?a ?o)))",
    "pick_two_obj_and_place": "(exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {o}Type) "
    "(receptacleType ?r {r}Type) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) "
    "(objectType ?o2 {o}Type) (receptacleType ?r {r}Type) (inReceptacle ?o2 ?r))))))",
}
for _task, _able, _done in (
    ("pick_clean_then_place_in_recep", "cleanable", "isClean"),
    ("pick_heat_then_place_in_recep", "heatable", "isHot"),
    ("pick_cool_then_place_in_recep", "coolable", "isCool"),
):
    _GOALS[_task] = (
        f"(exists (?r - receptacle) (exists (?o - object) (and ({_able} ?o) (objectType ?o {{o}}Type) "
        f"(receptacleType ?r {{r}}Type) ({_done} ?o) (inReceptacle ?o ?r))))"
    )


def _problem_text(
    rng: random.Random,
    task_type: str,
    target: str,
    goal: str,
    receptacles: tuple[Receptacle, ...],
    objects: list[tuple[str, str, int]],
) -> str:
    """The PDDL problem, with the facts that the reference's domain needs."""
    start = f"loc_bar_{_code(rng.randint(-12, 12))}_bar_{_code(rng.randint(-12, 12))}_bar_99_bar_30"
    places = sorted({r.place for r in receptacles} | {start})
    rtypes = sorted({r.kind for r in receptacles} | set(_TYPES_IN_DOMAIN[0]) | ({goal} - set(LAMPS)))
    otypes = sorted({kind for _, kind, _ in objects} | set(_TYPES_IN_DOMAIN[1]))
    lines = ["(define (problem game)", "(:domain alfred)", "(:objects", "agent1 - agent"]
    lines += [f"{kind}Type - rtype" for kind in rtypes] + [f"{kind}Type - otype" for kind in otypes]
    lines += [f"{place} - location" for place in places] + [f"{r.pddl_id} - receptacle" for r in receptacles]
    lines += [f"{name} - object" for name, _, _ in objects] + [")", "(:init", f"(atLocation agent1 {start})"]
    for r in receptacles:
        lines.append(f"(receptacleType {r.pddl_id} {r.kind}Type)")
        lines.append(f"(receptacleAtLocation {r.pddl_id} {r.place})")
        if r.openable:
            lines.append(f"(openable {r.pddl_id})")
    kinds = {kind for _, kind, _ in objects}
    for rtype in sorted({r.kind for r in receptacles}):
        lines += [f"(canContain {rtype}Type {otype}Type)" for otype in sorted(kinds & HOLDS[rtype])]
    for name, kind, where in objects:
        lines.append(f"(objectType {name} {kind}Type)")
        lines.append(f"(inReceptacle {name} {receptacles[where].pddl_id})")
        lines.append(f"(objectAtLocation {name} {receptacles[where].place})")
        if kind in LAMPS:
            lines.append(f"(toggleable {name})")
            continue
        lines.append(f"(pickupable {name})")
        for fact, group in (
            ("isReceptacleObject", CONTAINERS),
            ("cleanable", CLEANABLE),
            ("heatable", HEATABLE),
            ("coolable", COOLABLE),
            ("sliceable", SLICEABLE),
        ):
            if kind in group:
                lines.append(f"({fact} {name})")
    lines += [")", "(:goal (and " + _GOALS[task_type].format(o=target, r=goal) + "))", ")"]
    return "\n".join(lines) + "\n"
