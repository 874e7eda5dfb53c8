"""The changing part of a game: a `State` that can be cloned, compared, hashed and stored."""

from __future__ import annotations

import ast

from paw_fast.envs.alfworld.static import Literal, StaticWorld

_SETS = ("held", "opened", "lying", "left", "clean", "hot", "cool", "sliced", "toggled")


class State:
    """What changes while a game is played. Sets are frozen and replaced, never altered, so a clone is cheap.

    place: where the agent stands. inside[r]: objects in receptacle r. held, holds_any: what is carried, and
    whether the hands count as full (two facts in ALFWorld). opened: open receptacles. lying: pairs (object,
    place). left: pairs (object, receptacle) from which the object was taken and not put back.
    clean, hot, cool, sliced, toggled: the objects that are so.
    """

    __slots__ = ("commands", "holds_any", "inside", "place", "world", *_SETS)

    world: StaticWorld
    place: int
    holds_any: bool
    inside: list[frozenset[int]]
    held: frozenset[int]
    opened: frozenset[int]
    lying: frozenset[tuple[int, int]]
    left: frozenset[tuple[int, int]]
    clean: frozenset[int]
    hot: frozenset[int]
    cool: frozenset[int]
    sliced: frozenset[int]
    toggled: frozenset[int]

    def __init__(self, world: StaticWorld) -> None:
        self.world = world
        self.place = -1
        self.holds_any = False
        self.inside = [frozenset()] * len(world.receptacles)
        for name in _SETS:
            setattr(self, name, frozenset())
        self.commands: dict | None = None  # filled by `engine.commands`, dropped by `engine.play`

    def clone(self) -> State:
        """An independent copy; the world is shared."""
        twin = State.__new__(State)
        twin.world, twin.place, twin.holds_any = self.world, self.place, self.holds_any
        twin.inside, twin.commands = list(self.inside), self.commands
        twin.held, twin.opened, twin.lying, twin.left = self.held, self.opened, self.lying, self.left
        twin.clean, twin.hot, twin.cool = self.clean, self.hot, self.cool
        twin.sliced, twin.toggled = self.sliced, self.toggled
        return twin

    def state_key(self) -> tuple:
        """Equal for two states of one world exactly when every fact that commands can change is equal."""
        return (self.place, self.holds_any, tuple(self.inside), *(getattr(self, name) for name in _SETS))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.world is other.world and self.state_key() == other.state_key()

    def __hash__(self) -> int:
        return hash(self.state_key())

    def to_bytes(self) -> bytes:
        """The state without its world; equal states give equal bytes, in any process."""
        return repr((self.world.digest, *self.as_numbers())).encode("ascii")

    def as_numbers(self) -> tuple:
        """All that changes, as sorted numbers: equal for equal states, in any process."""
        sets = [sorted(getattr(self, name)) for name in _SETS]
        return self.place, int(self.holds_any), [sorted(s) for s in self.inside], sets

    @classmethod
    def from_bytes(cls, world: StaticWorld, data: bytes) -> State:
        """The state that `to_bytes` stored, over `world`, loaded from the same game in this process or another.

        Raises `ValueError` when the bytes are not such a state, or are one of another game.
        """
        state = cls(world)
        try:
            digest, place, holds_any, inside, sets = ast.literal_eval(data.decode("ascii"))
            if digest != world.digest:
                raise ValueError("it is a state of another game")
            if len(inside) != len(world.receptacles):
                raise ValueError(f"{len(inside)} receptacles stored, this world has {len(world.receptacles)}")
            state.place, state.holds_any = _below(place, len(world.places)), bool(holds_any)
            num_objects = len(world.objects)
            state.inside = [frozenset(_below(o, num_objects) for o in group) for group in inside]
            limits = {"lying": len(world.places), "left": len(world.receptacles), "opened": len(world.receptacles)}
            for name, values in zip(_SETS, sets, strict=True):
                limit = limits.get(name, num_objects)
                if name in ("lying", "left"):
                    members = frozenset((_below(o, num_objects), _below(x, limit)) for o, x in values)
                else:
                    members = frozenset(_below(x, limit) for x in values)
                setattr(state, name, members)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise ValueError(f"not a stored state of this world: {error}") from None
        return state

    def is_true(self, literal: Literal) -> bool:
        """Whether a changing fact (see `static.Literal`) holds now."""
        predicate, a, b = literal
        if predicate == "inreceptacle":
            return a in self.inside[b]
        if predicate == "atlocation":
            return self.place == a
        if predicate == "objectatlocation":
            return (a, b) in self.lying
        return a in getattr(self, _SET_OF[predicate])

    def won(self) -> bool:
        """Whether the goal holds now. Not latched: undoing it makes it false again."""
        is_true = self.is_true
        return all(any(all(map(is_true, facts)) for facts in clause) for clause in self.world.goal.clauses)


_SET_OF = {
    "opened": "opened",
    "holds": "held",
    "isclean": "clean",
    "ishot": "hot",
    "iscool": "cool",
    "istoggled": "toggled",
    "issliced": "sliced",
}


def _below(value: object, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{value!r} is not a number below {limit}")
    return value
