"""The engine's rules on a hand-made household, in both wordings. Expected texts are the reference's."""

import dataclasses
import pickle

import pytest

from paw_fast.envs.alfworld import engine, static
from paw_fast.envs.alfworld.pddl import parse_problem
from paw_fast.envs.alfworld.state import State
from paw_fast.envs.alfworld.text import OFFICIAL, WHEEL, Rules
from paw_fast.envs.alfworld.world import World

OBJECTS = """
    agent1 - agent  l0 l1 l2 l3 l4 - location
    FridgeType SinkBasinType MicrowaveType CabinetType CounterTopType - rtype
    AppleType KnifeType MugType DeskLampType - otype
    Fridge_bar_1 Cabinet_bar_1 Cabinet_bar_2 CounterTop_bar_1 Microwave_bar_1 Sink_bar_1_bar_SinkBasin - receptacle
    Apple_bar_1 Apple_bar_2 Knife_bar_1 Mug_bar_1 DeskLamp_bar_1 - object
"""
FACTS = """
    (atLocation agent1 l0)
    (receptacleType Fridge_bar_1 FridgeType) (receptacleAtLocation Fridge_bar_1 l1) (openable Fridge_bar_1)
    (receptacleType Cabinet_bar_1 CabinetType) (receptacleAtLocation Cabinet_bar_1 l2) (openable Cabinet_bar_1)
    (receptacleType Cabinet_bar_2 CabinetType) (receptacleAtLocation Cabinet_bar_2 l2)
    (receptacleType CounterTop_bar_1 CounterTopType) (receptacleAtLocation CounterTop_bar_1 l3)
    (receptacleType Microwave_bar_1 MicrowaveType) (receptacleAtLocation Microwave_bar_1 l3) (openable Microwave_bar_1)
    (receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType) (receptacleAtLocation Sink_bar_1_bar_SinkBasin l4)
    (canContain FridgeType AppleType) (canContain CounterTopType AppleType) (canContain CabinetType MugType)
    (canContain CounterTopType KnifeType) (canContain CabinetType AppleType)
    (objectType Apple_bar_1 AppleType) (pickupable Apple_bar_1) (cleanable Apple_bar_1) (heatable Apple_bar_1)
    (coolable Apple_bar_1) (sliceable Apple_bar_1) (inReceptacle Apple_bar_1 Cabinet_bar_2)
    (objectAtLocation Apple_bar_1 l2)
    (objectType Apple_bar_2 AppleType) (pickupable Apple_bar_2) (sliceable Apple_bar_2)
    (inReceptacle Apple_bar_2 CounterTop_bar_1) (objectAtLocation Apple_bar_2 l3)
    (objectType Knife_bar_1 KnifeType) (pickupable Knife_bar_1) (inReceptacle Knife_bar_1 CounterTop_bar_1)
    (objectAtLocation Knife_bar_1 l3)
    (objectType Mug_bar_1 MugType) (pickupable Mug_bar_1) (isReceptacleObject Mug_bar_1)
    (inReceptacle Mug_bar_1 Cabinet_bar_1) (objectAtLocation Mug_bar_1 l2)
    (objectType DeskLamp_bar_1 DeskLampType) (toggleable DeskLamp_bar_1) (inReceptacle DeskLamp_bar_1 Cabinet_bar_1)
    (objectAtLocation DeskLamp_bar_1 l2)
"""
GOAL = """(and (exists (?r - receptacle) (exists (?o - object) (and (coolable ?o) (objectType ?o AppleType)
    (receptacleType ?r FridgeType) (isCool ?o) (inReceptacle ?o ?r)))))"""


def make(rules=Rules(WHEEL), facts=FACTS, goal=GOAL):  # noqa: B008
    text = f"(define (problem p) (:domain alfred) (:objects {OBJECTS}) (:init {facts}) (:goal {goal}))"
    return World(parse_problem(text), rules, "put a cool apple in fridge").initial.clone()


def play(state, *commands):
    return [engine.play(state, command) for command in commands]


def test_introduction_lists_receptacles_by_id_with_numbers_going_down():
    assert engine.introduction(make()) == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
        "a cabinet 2, a cabinet 1, a countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\n"
        "Your task is to: put a cool apple in fridge."
    )


def test_first_admissible_commands_are_sorted():
    assert list(engine.commands(make())) == [
        "go to cabinet 1",
        "go to cabinet 2",
        "go to countertop 1",
        "go to fridge 1",
        "go to microwave 1",
        "go to sinkbasin 1",
        "help",
        "inventory",
        "look",
    ]


def test_a_whole_episode_in_the_package_s_wording():
    state = make()
    # Ids sort upward, numbers downward: Cabinet_bar_1 is "cabinet 2", Apple_bar_1 is "apple 2".
    assert play(
        state,
        "look",
        "go to cabinet 1",
        "take apple 2 from cabinet 1",
        "inventory",
        "examine apple 2",
        "look",
        "go to fridge 1",
        "cool apple 2 with fridge 1",
        "examine apple 2",
        "open fridge 1",
        "move apple 2 to fridge 1",
    ) == [
        "You are in the middle of a room. Looking quickly around you, you see nothing.",
        "You arrive at cabinet 1. On the cabinet 1, you see a apple 2.",
        "You pick up the apple 2 from the cabinet 1.",
        "You are carrying: a apple 2.",
        "There's nothing special about apple 2.",
        "You are facing the cabinet 2, and cabinet 1. Next to it, you see nothing.",
        "You arrive at fridge 1. The fridge 1 is closed.",
        "You cool the apple 2 using the fridge 1.",
        "This is a cold apple 2.",
        "You open the fridge 1. The fridge 1 is open. In it, you see nothing.",
        "You move the apple 2 to the fridge 1.",
    ]
    assert state.won()
    play(state, "take apple 2 from fridge 1")
    assert not state.won()  # not latched


def test_the_official_wording():
    state = make(Rules(OFFICIAL, has_help=False))
    assert play(
        state,
        "help",
        "go to cabinet 1",
        "look",
        "take apple 2 from cabinet 1",
        "inventory",
        "put apple 2 in/on cabinet 1",
        "open cabinet 2",
        "close cabinet 2",
        "use desklamp 1",
    ) == [
        "Nothing happens.",
        "You arrive at loc 3. On cabinet 1, you see apple 2.".replace("loc 3", state.world.places[2]),
        "You are facing cabinet 2(is closed), and cabinet 1. Next to it, you see nothing.",
        "You take apple 2 from cabinet 1.",
        "You are carrying: apple 2.",
        "You put apple 2 in/on cabinet 1.",
        "You open cabinet 2. In cabinet 2, you see desklamp 1, and mug 1.",
        "You close cabinet 2.",
        "You turn on desklamp 1.",
    ]


def test_an_object_left_at_a_shared_place_lies_next_to_it():
    state = make()
    play(state, "go to cabinet 1", "take apple 2 from cabinet 1", "open cabinet 2", "move apple 2 to cabinet 2")
    assert play(state, "look") == ["You are facing the cabinet 2, and cabinet 1. Next to it, you see a apple 2."]


def test_no_command_goes_to_the_place_where_one_stands():
    state = make()
    play(state, "go to cabinet 1")
    assert "go to cabinet 2" not in engine.commands(state)
    assert play(state, "go to cabinet 2") == ["Nothing happens."]


def test_slicing_needs_a_knife_in_hand_and_the_object_at_the_place():
    state = make()
    play(state, "go to countertop 1", "take knife 1 from countertop 1")
    assert play(state, "slice apple 1 with knife 1") == ["You sliced the apple 1 with the knife 1."]
    play(state, "move knife 1 to countertop 1", "take apple 1 from countertop 1")
    assert play(state, "examine apple 1") == ["This is a sliced apple 1."]


def test_heating_clears_cold_and_cooling_clears_hot_and_clean_stays():
    state = make()
    play(state, "go to cabinet 1", "take apple 2 from cabinet 1", "go to sinkbasin 1", "clean apple 2 with sinkbasin 1")
    assert play(state, "examine apple 2") == ["This is a clean apple 2."]
    play(state, "go to microwave 1", "heat apple 2 with microwave 1")  # the microwave is closed: no matter
    assert play(state, "examine apple 2") == ["This is a hot and clean apple 2."]
    play(state, "go to fridge 1", "cool apple 2 with fridge 1")
    assert play(state, "examine apple 2") == ["This is a cool and clean apple 2."]


def test_the_lamp_can_be_used_in_a_closed_receptacle_and_the_mug_not_taken():
    state = make()
    play(state, "go to cabinet 2")
    commands = engine.commands(state)
    assert "use desklamp 1" in commands
    assert "take mug 1 from cabinet 2" not in commands
    assert "take desklamp 1 from cabinet 2" not in commands
    assert play(state, "use desklamp 1", "use desklamp 1") == ["You turn on the desklamp 1."] * 2
    play(state, "open cabinet 2", "take mug 1 from cabinet 2")
    assert play(state, "examine mug 1") == ["This is a normal mug 1. In it, you see nothing."]


@pytest.mark.parametrize(
    "command", ["", "   ", "Look", "go to fridge 1.", "go to fridge", "go  to fridge 1", "\x00", "dance", "take"]
)
def test_what_is_not_admissible_changes_nothing(command):
    state = make()
    before = state.clone()
    assert play(state, command) == ["Nothing happens."]
    assert state == before


def test_commands_are_stripped():
    assert play(make(), "  look \n") == play(make(), "look")


def test_help_is_the_reference_s():
    text = play(make(), "help")[0]
    assert text.startswith("Available commands:\n  look:                             look around")
    assert "  move (object) to (receptacle):  place an object in or on a receptacle\n" in text
    assert text.endswith("slice an object using a sharp object\n")


def test_states_clone_compare_hash_and_go_through_bytes():
    state = make()
    play(state, "go to cabinet 1", "take apple 2 from cabinet 1")
    twin = state.clone()
    assert twin == state
    assert hash(twin) == hash(state)
    stored = state.to_bytes()
    back = State.from_bytes(state.world, stored)
    assert back == state
    assert back.to_bytes() == stored
    assert list(engine.commands(back)) == list(engine.commands(state))
    play(twin, "go to fridge 1")
    assert twin != state
    assert {state: 1}[back] == 1


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"(1,2)", b"(0, 0, [], [])", b"\xff", b"__import__('os')", b"('x', 0, 0, [], [])"],
)
def test_bytes_that_are_no_state_are_refused(data):
    with pytest.raises(ValueError, match="not a stored state"):
        State.from_bytes(make().world, data)


def test_equal_states_reached_by_different_ways_are_equal():
    one, two = make(), make()
    two.world = one.world
    play(one, "go to cabinet 1", "go to fridge 1")
    play(two, "go to fridge 1")
    assert one.state_key() == two.state_key()


def test_actions_and_rules_are_plain_values():
    assert dataclasses.replace(Rules(WHEEL), has_help=False) == Rules(WHEEL, has_help=False)
    assert pickle.loads(pickle.dumps(static.Action("go", other=1))) == static.Action("go", -1, 1)
