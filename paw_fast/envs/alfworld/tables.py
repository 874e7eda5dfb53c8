"""Defines the objects, receptacles and room types of generated games.

Which receptacle may hold which object, and what can be cleaned, heated, cooled and sliced, are facts of the
reference's data set (ALFRED, MIT license). Room contents and counts were chosen for this package, so that generated
games match the official games in size.
"""

from __future__ import annotations

from dataclasses import dataclass, field


def words(text: str) -> tuple[str, ...]:
    """Splits a word list written as one string."""
    return tuple(text.split())


_SURFACE = (
    "AlarmClock Apple BaseballBat BasketBall Book Bowl Box Bread ButterKnife CD Candle CellPhone Cloth CreditCard "
    "Cup DishSponge Egg Fork Glassbottle HandTowel Kettle KeyChain Knife Ladle Laptop Lettuce Mug Newspaper Pan "
    "PaperTowel Pen Pencil PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBar SoapBottle Spatula "
    "Spoon SprayBottle Statue TennisRacket TissueBox ToiletPaper ToiletPaperRoll Tomato Vase Watch WateringCan "
    "WineBottle "
)
_SEAT = "BasketBall Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow RemoteControl"
_HOLDS = {
    "CoffeeMachine": "Mug",
    "Microwave": "Apple Bowl Bread Cup Egg Glassbottle Mug Plate Potato Tomato",
    "StoveBurner": "Kettle Pan Pot",
    "Fridge": ("Apple Bowl Bread Cup Egg Glassbottle Lettuce Mug Pan Plate Pot Potato Tomato WineBottle"),
    "Dresser": (
        "AlarmClock BasketBall Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup Glassbottle KeyChain Laptop "
        "Mug Newspaper Pen Pencil Plate RemoteControl SprayBottle Statue TennisRacket TissueBox ToiletPaper "
        "ToiletPaperRoll Vase Watch WateringCan WineBottle"
    ),
    "LaundryHamper": "Cloth",
    "Desk": (
        "AlarmClock BasketBall Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup Glassbottle KeyChain Laptop "
        "Mug Newspaper Pen Pencil Plate RemoteControl SoapBottle SprayBottle Statue TennisRacket TissueBox "
        "ToiletPaper ToiletPaperRoll Vase Watch WateringCan WineBottle"
    ),
    "Bed": "BaseballBat BasketBall Book CellPhone Laptop Newspaper Pillow TennisRacket",
    "Toilet": (
        "Candle Cloth DishSponge HandTowel Newspaper PaperTowel SoapBar SoapBottle SprayBottle TissueBox "
        "ToiletPaper ToiletPaperRoll"
    ),
    "ToiletPaperHanger": "ToiletPaper ToiletPaperRoll",
    "TowelHolder": "Towel",
    "HandTowelHolder": "HandTowel",
    "Cart": (
        "Candle Cloth DishSponge HandTowel Mug PaperTowel Plunger SoapBar SoapBottle SprayBottle Statue TissueBox "
        "ToiletPaper ToiletPaperRoll Vase"
    ),
    "BathtubBasin": "Cloth DishSponge HandTowel SoapBar",
    "SinkBasin": (
        "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Glassbottle HandTowel Kettle Knife Ladle Lettuce "
        "Mug Pan Plate Pot Potato SoapBar Spatula Spoon Tomato"
    ),
    "Cabinet": (
        "Book Bowl Box CD Candle Cloth Cup DishSponge Glassbottle HandTowel Kettle Ladle Mug Newspaper Pan "
        "PepperShaker Plate Plunger Pot SaltShaker SoapBar SoapBottle SprayBottle TissueBox ToiletPaper "
        "ToiletPaperRoll Vase WateringCan WineBottle"
    ),
    "Shelf": (
        "AlarmClock Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup DishSponge Glassbottle HandTowel "
        "Kettle KeyChain Mug Newspaper PaperTowel Pen Pencil PepperShaker Plate Pot RemoteControl SaltShaker "
        "SoapBar SoapBottle SprayBottle Statue TissueBox ToiletPaper ToiletPaperRoll Vase Watch WateringCan "
        "WineBottle"
    ),
    "Drawer": (
        "Book ButterKnife CD Candle CellPhone Cloth CreditCard DishSponge Fork HandTowel KeyChain Knife Ladle "
        "Newspaper Pen Pencil PepperShaker RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon SprayBottle "
        "TissueBox ToiletPaper ToiletPaperRoll Watch WateringCan"
    ),
    "GarbageCan": (
        "Apple Bread CD Cloth DishSponge Egg HandTowel Lettuce Newspaper PaperTowel Pen Pencil Potato SoapBar "
        "SoapBottle SprayBottle TissueBox ToiletPaper ToiletPaperRoll Tomato WineBottle"
    ),
    "Safe": "CD CellPhone CreditCard KeyChain Statue Vase Watch",
    "TVStand": "TissueBox",
}

for _name in ("CounterTop", "DiningTable", "CoffeeTable", "SideTable"):
    _HOLDS[_name] = _SURFACE
for _name in ("Sofa", "ArmChair", "Ottoman"):
    _HOLDS[_name] = _SEAT
_HOLDS["Toaster"] = ""  # holds sliced bread alone, which generated games do not have

HOLDS: dict[str, frozenset[str]] = {name: frozenset(objects.split()) for name, objects in _HOLDS.items()}
OPENABLE = frozenset({"Cabinet", "Drawer", "Fridge", "Microwave", "Safe"})
CLEANABLE = frozenset(
    words(
        "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan Plate Pot Potato "
        "SoapBar Spatula Spoon Tomato"
    )
)
HEATABLE = frozenset(words("Apple Bread Cup Egg Mug Plate Potato Tomato"))
COOLABLE = frozenset(words("Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle"))
SLICEABLE = frozenset(words("Apple Bread Egg Lettuce Potato Tomato"))
CONTAINERS = frozenset(words("Bowl Box Cup Mug Pan Plate Pot"))
LAMPS = ("DeskLamp", "FloorLamp")
LAMP_STANDS = ("Desk", "SideTable", "Dresser", "Shelf", "DiningTable", "CoffeeTable")

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
# For each task type: the receptacle type of the appliance, and the objects it can be used on.
APPLIANCES = {
    "pick_clean_then_place_in_recep": ("SinkBasin", CLEANABLE),
    "pick_heat_then_place_in_recep": ("Microwave", HEATABLE),
    "pick_cool_then_place_in_recep": ("Fridge", COOLABLE),
}
SENTENCES = {
    "pick_and_place_simple": ("put a {o} in {r}", "put some {o} on {r}"),
    "look_at_obj_in_light": ("look at {o} under the {r}", "examine the {o} with the {r}"),
    "pick_clean_then_place_in_recep": ("put a clean {o} in {r}", "clean some {o} and put it in {r}"),
    "pick_heat_then_place_in_recep": ("put a hot {o} in {r}", "heat some {o} and put it in {r}"),
    "pick_cool_then_place_in_recep": ("put a cool {o} in {r}", "cool some {o} and put it in {r}"),
    "pick_two_obj_and_place": ("put two {o} in {r}", "find two {o} and put them in {r}"),
}


@dataclass(frozen=True, eq=False)
class RoomKind:
    """One of the four room types.

    scenes: scene numbers, as in ALFWorld. tasks: possible task types. required: receptacle types of which every such
    room has one; rooms of size `full` also have those in required_full. optional: receptacle type -> (sampling
    weight, maximum number in mini and small, in medium, in full). objects: possible object types; objects_full:
    additional ones in `full`. full_weights: weights in `full` that differ from those in optional. types_per_object:
    number of object types divided by the number of objects, in `medium` and `full`. num_receptacles, num_objects:
    (minimum, maximum) by size.
    """

    name: str
    scenes: range
    tasks: frozenset[str]
    required: tuple[str, ...]
    required_full: tuple[str, ...]
    optional: dict[str, tuple[int, int, int, int]]
    objects: tuple[str, ...]
    num_receptacles: dict[str, tuple[int, int]]
    num_objects: dict[str, tuple[int, int]]
    objects_full: tuple[str, ...] = ()
    full_weights: dict[str, int] = field(default_factory=dict)
    types_per_object: float = 0.55


_TASKS_EVERYWHERE = {"pick_and_place_simple", "pick_two_obj_and_place"}

ROOMS = (
    RoomKind(
        name="kitchen",
        scenes=range(1, 31),
        tasks=frozenset(_TASKS_EVERYWHERE | set(APPLIANCES)),
        required=("CounterTop", "Fridge", "Microwave", "SinkBasin"),
        required_full=(*["StoveBurner"] * 4, "CoffeeMachine", "Toaster", "GarbageCan", *["Cabinet"] * 4, "Drawer"),
        optional={
            "Cabinet": (8, 3, 5, 14),
            "Drawer": (6, 2, 3, 9),
            "CounterTop": (2, 2, 2, 3),
            "DiningTable": (3, 1, 1, 1),
            "GarbageCan": (2, 1, 1, 1),
            "StoveBurner": (2, 1, 2, 4),
            "CoffeeMachine": (1, 1, 1, 1),
            "Shelf": (1, 1, 2, 3),
            "SideTable": (1, 1, 1, 1),
        },
        objects=words(
            "Apple Bread Egg Lettuce Potato Tomato Bowl Cup Mug Plate Pan Pot Fork Knife Spoon ButterKnife Spatula "
            "SaltShaker PepperShaker DishSponge SoapBottle Ladle Kettle WineBottle Glassbottle Vase Statue"
        ),
        num_receptacles={"small": (6, 10), "medium": (11, 17), "full": (22, 32)},
        num_objects={"small": (6, 9), "medium": (14, 22), "full": (40, 57)},
        objects_full=("CellPhone", "CreditCard"),
        full_weights={"Cabinet": 7, "Drawer": 3, "Shelf": 4, "DiningTable": 1},
    ),
    RoomKind(
        name="living room",
        scenes=range(201, 231),
        tasks=frozenset(_TASKS_EVERYWHERE | {"look_at_obj_in_light"}),
        required=("Sofa", "CoffeeTable", "SideTable"),
        required_full=("GarbageCan", "ArmChair"),
        optional={
            "Drawer": (6, 3, 4, 9),
            "Shelf": (4, 2, 3, 6),
            "SideTable": (2, 1, 2, 3),
            "ArmChair": (3, 1, 2, 2),
            "DiningTable": (2, 1, 1, 1),
            "GarbageCan": (2, 1, 1, 1),
            "Dresser": (2, 1, 1, 1),
            "Cabinet": (2, 2, 2, 4),
            "Desk": (1, 1, 1, 1),
            "Ottoman": (1, 1, 1, 1),
            "Safe": (1, 1, 1, 1),
            "TVStand": (1, 0, 1, 1),
        },
        objects=words(
            "KeyChain Pillow CreditCard Laptop Box RemoteControl Statue Newspaper Vase Watch WateringCan Plate "
            "TissueBox Book CellPhone Pen Pencil Bowl Candle"
        ),
        num_receptacles={"mini": (3, 4), "small": (6, 10), "medium": (10, 15), "full": (9, 22)},
        num_objects={"mini": (2, 3), "small": (5, 8), "medium": (10, 16), "full": (17, 28)},
    ),
    RoomKind(
        name="bedroom",
        scenes=range(301, 331),
        tasks=frozenset(_TASKS_EVERYWHERE | {"look_at_obj_in_light"}),
        required=("Bed", "Desk", "Drawer"),
        required_full=("GarbageCan", "Drawer"),
        optional={
            "Drawer": (6, 3, 5, 8),
            "Shelf": (5, 2, 4, 10),
            "SideTable": (2, 1, 2, 2),
            "Dresser": (3, 1, 1, 1),
            "Desk": (1, 1, 2, 2),
            "GarbageCan": (2, 1, 1, 1),
            "ArmChair": (1, 1, 1, 1),
            "LaundryHamper": (1, 0, 1, 1),
            "Safe": (1, 1, 1, 1),
            "Cabinet": (1, 1, 2, 3),
        },
        objects=words(
            "AlarmClock Book CD CellPhone CreditCard KeyChain Laptop Mug Pen Pencil Pillow Bowl BaseballBat "
            "BasketBall Box TennisRacket TissueBox Cloth Watch RemoteControl Vase Statue"
        ),
        num_receptacles={"mini": (3, 4), "small": (6, 10), "medium": (10, 15), "full": (9, 23)},
        num_objects={"mini": (2, 3), "small": (5, 8), "medium": (10, 16), "full": (18, 26)},
        full_weights={"Drawer": 5, "Shelf": 9, "SideTable": 1, "Dresser": 2, "Cabinet": 0},
    ),
    RoomKind(
        name="bathroom",
        scenes=range(401, 431),
        tasks=frozenset(_TASKS_EVERYWHERE | {"pick_clean_then_place_in_recep"}),
        required=("Toilet", "SinkBasin", "CounterTop", "Cabinet"),
        required_full=("GarbageCan", "ToiletPaperHanger", "HandTowelHolder", "TowelHolder"),
        optional={
            "Cabinet": (6, 3, 4, 5),
            "Drawer": (4, 2, 3, 4),
            "GarbageCan": (3, 1, 1, 1),
            "BathtubBasin": (2, 1, 1, 1),
            "SinkBasin": (1, 1, 2, 2),
            "ToiletPaperHanger": (1, 0, 1, 1),
            "HandTowelHolder": (1, 0, 1, 2),
            "TowelHolder": (1, 0, 1, 1),
            "Shelf": (2, 1, 2, 3),
            "Cart": (1, 1, 1, 1),
            "SideTable": (1, 1, 1, 1),
        },
        objects=words(
            "Candle Cloth HandTowel SoapBar SoapBottle SprayBottle TissueBox ToiletPaper ToiletPaperRoll DishSponge "
            "Plunger Towel"
        ),
        num_receptacles={"small": (6, 10), "medium": (9, 13), "full": (10, 16)},
        num_objects={"small": (5, 8), "medium": (9, 14), "full": (14, 24)},
    ),
)
# Scene numbers modulo 100 that do not occur in training; they include the official unseen scenes 10, 219, 308, 424.
UNSEEN_ROOMS = frozenset({4, 8, 10, 19, 24})
SIZES = ("mini", "small", "medium", "full")
MINI_TASK_TYPES = ("pick_and_place_simple", "look_at_obj_in_light")
"""The task types of size `mini`, the two that need no appliance and one object."""
MINI_ROOMS = tuple(kind for kind in ROOMS if set(MINI_TASK_TYPES) <= kind.tasks)
"""The rooms of size `mini`: living rooms and bedrooms."""
# Relative probability that an object is placed in a receptacle of this type (default 1), as in the official games,
# where a counter holds nine times as many objects as a cabinet. Not used in `small`, where all are equally likely.
PLACEMENT_WEIGHTS = {
    "CounterTop": 7, "DiningTable": 12, "CoffeeTable": 8, "Desk": 8, "Dresser": 8, "Fridge": 10, "Bed": 9, "Sofa": 6,
    "SinkBasin": 6, "SideTable": 5, "GarbageCan": 6, "Toilet": 3, "Microwave": 4, "ArmChair": 2, "Ottoman": 2,
    "Safe": 4, "Cart": 3, "BathtubBasin": 2, "TVStand": 2, "StoveBurner": 4, "CoffeeMachine": 2, "Drawer": 2,
}  # fmt: skip
