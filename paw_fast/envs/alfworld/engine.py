"""Runs ALFWorld's rules: which commands a state admits, what they change, and what the game says.

The wording and the quirks are the reference's (alfworld 0.4.2 on textworld 1.7.0); a differential test holds
the two together. Quirks worth knowing: an object can be examined only while it is held; heating, cooling and
cleaning ignore whether the appliance is open; `use` works inside closed receptacles, never turns anything
off; slicing needs the object to be *at the place*, even in a closed receptacle.
"""

from __future__ import annotations

from paw_fast.envs.alfworld.state import State
from paw_fast.envs.alfworld.static import Action
from paw_fast.envs.alfworld.text import HELP, MIDDLE, NOTHING_HAPPENS, TASK_PREFIX, WELCOME, join_list

_LOOK, _INVENTORY, _HELP = Action("look"), Action("inventory"), Action("help")


def commands(state: State) -> dict[str, Action]:
    """The admissible commands, sorted, each with its action. Computed once for a state and kept."""
    if state.commands is None:
        found = _find_commands(state)
        state.commands = {text: found[text] for text in sorted(found)}
    return state.commands


def _find_commands(state: State) -> dict[str, Action]:
    world, place = state.world, state.place
    found = {"look": _LOOK, "inventory": _INVENTORY}
    if world.rules.has_help:
        found["help"] = _HELP
    place_of, names = world.place_of, world.receptacles
    for text, action in world.go_to:
        if place_of[action.other] != place:
            found[text] = action
    for r in world.at_place[place]:
        name = names[r]
        found[f"examine {name}"] = Action("examine receptacle", other=r)
        is_open = True
        if r in world.openable:
            is_open = r in state.opened
            verb = "close" if is_open else "open"
            found[f"{verb} {name}"] = Action(verb, other=r)
        for o in state.inside[r]:
            if is_open and not state.holds_any and o in world.pickupable:
                found[f"take {world.objects[o]} from {name}"] = Action("take", o, r)
            if o in world.toggleable:
                found[f"use {world.objects[o]}"] = Action("use", o, r)
        for o in state.held:
            _find_uses(state, o, r, is_open, found)
    for o in state.held:
        found[f"examine {world.objects[o]}"] = Action("examine object", o)
        if o in world.knives:
            for target, where in state.lying:
                if where == place and target in world.sliceable:
                    found[f"slice {world.objects[target]} with {world.objects[o]}"] = Action("slice", target, o)
    return found


def _find_uses(state: State, o: int, r: int, is_open: bool, found: dict[str, Action]) -> None:
    """The commands for a held object at a receptacle: put, clean, heat, cool."""
    world = state.world
    thing, name = world.objects[o], world.receptacles[r]
    if is_open and r in world.holders[o]:
        found[world.rules.dialect.put_command.format(o=thing, r=name)] = Action("put", o, r)
    if r in world.cleaners and o in world.cleanable:
        found[f"clean {thing} with {name}"] = Action("clean", o, r)
    if r in world.heaters and o in world.heatable:
        found[f"heat {thing} with {name}"] = Action("heat", o, r)
    if r in world.coolers and o in world.coolable:
        found[f"cool {thing} with {name}"] = Action("cool", o, r)


def play(state: State, command: str) -> str:
    """Carries the command out on `state` and returns what the game says."""
    action = commands(state).get(command.strip())
    return NOTHING_HAPPENS if action is None else act(state, action)


def act(state: State, action: Action) -> str:
    """Carries out one admissible action on `state` and returns what the game says."""
    world, (verb, o, r) = state.world, action
    say = world.rules.dialect
    if verb in _QUIET:
        return _QUIET[verb](state, action)
    state.commands = None
    if verb == "go":
        state.place = world.place_of[r]
        arrive = say.arrive.format(r=world.receptacles[r], place=world.places[state.place])
        return arrive + describe_receptacle(state, r)
    if verb == "open":
        state.opened |= {r}
        return say.open.format(r=world.receptacles[r]) + describe_receptacle(state, r)
    if verb == "close":
        state.opened -= {r}
        return say.close.format(r=world.receptacles[r])
    if verb == "take":
        state.inside[r] -= {o}
        state.held |= {o}
        state.holds_any = True
        state.lying -= {(o, state.place)}
        state.left |= {(o, r)}
        return say.take.format(o=world.objects[o], r=world.receptacles[r])
    if verb == "put":
        state.inside[r] |= {o}
        state.held -= {o}
        state.holds_any = False
        state.lying |= {(o, state.place)}
        state.left -= {(o, r)}
        return say.put.format(o=world.objects[o], r=world.receptacles[r])
    if verb == "slice":
        state.sliced |= {o}
        return say.slice.format(o=world.objects[o], tool=world.objects[r])
    if verb == "use":
        state.toggled |= {o}
        return say.use.format(o=world.objects[o])
    if verb == "clean":
        state.clean |= {o}
        return say.clean.format(o=world.objects[o], r=world.receptacles[r])
    if verb == "heat":
        state.hot |= {o}
        state.cool -= {o}
        return say.heat.format(o=world.objects[o], r=world.receptacles[r])
    assert verb == "cool", verb
    state.cool |= {o}
    state.hot -= {o}
    return say.cool.format(o=world.objects[o], r=world.receptacles[r])


def introduction(state: State) -> str:
    """The first observation: the room and the task."""
    world = state.world
    if world.at_place[state.place]:
        room = _look(state, _LOOK)
    else:
        say = world.rules.dialect
        room = MIDDLE + say.listing(name for r, name in enumerate(world.receptacles) if world.place_of[r] >= 0) + "."
    return f"{WELCOME}\n\n{room}\n\n{TASK_PREFIX}{world.task}."


def describe_receptacle(state: State, r: int) -> str:
    """What `examine` says about a receptacle."""
    world, say = state.world, state.world.rules.dialect
    if r in world.openable and r not in state.opened:
        return say.is_closed.format(r=world.receptacles[r])
    listing = say.listing(world.objects[o] for o in sorted(state.inside[r]))
    return (say.is_open if r in world.openable else say.on).format(r=world.receptacles[r], list=listing)


def _examine_receptacle(state: State, action: Action) -> str:
    return describe_receptacle(state, action.other)


def _examine_object(state: State, action: Action) -> str:
    world, o = state.world, action.thing
    name = world.objects[o]
    if o in world.is_container:
        inner = world.rules.dialect.listing(world.objects[i] for i in world.inner[o])
        return f"This is a normal {name}. In it, you see {inner}."
    clean, hot, cool, sliced = (o in group for group in (state.clean, state.hot, state.cool, state.sliced))
    warmth = "hot" if hot else "cool" if cool else ""
    if sliced and (clean or warmth):
        words = " and ".join(word for word in (warmth, "clean" if clean else "") if word)
        return f"This is a {words} sliced {name}."
    if clean and warmth:
        return f"This is a {warmth} and clean {name}."
    if hot or clean or cool:
        return f"This is a {'hot' if hot else 'clean' if clean else 'cold'} {name}."
    if o in world.toggleable and o in state.toggled:
        return f"This {name} is on."
    if sliced and o in world.sliceable:
        return f"This is a sliced {name}."
    return f"There's nothing special about {name}."


def _inventory(state: State, action: Action) -> str:
    if not state.holds_any:
        return "You are not carrying anything."
    world = state.world
    return f"You are carrying: {world.rules.dialect.listing(world.objects[o] for o in sorted(state.held))}."


def _look(state: State, action: Action) -> str:
    world, say = state.world, state.world.rules.dialect
    here = world.at_place[state.place]
    if not here:
        return MIDDLE + "nothing."
    facing = []
    for r in here:
        mark = ""
        if say.facing_state and r in world.openable:
            mark = "(is open)" if r in state.opened else "(is closed)"
        facing.append(world.receptacles[r] + mark)
    lying = sorted(o for o, place in state.lying if place == state.place)
    floor = say.listing(world.objects[o] for o in lying for r in here if (o, r) in state.left)
    return say.facing.format(list=join_list(facing), floor=floor)


_QUIET = {
    "look": _look,
    "inventory": _inventory,
    "help": lambda state, action: HELP,
    "examine receptacle": _examine_receptacle,
    "examine object": _examine_object,
}
