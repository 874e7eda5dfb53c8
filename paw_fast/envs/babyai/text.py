"""Describes in words what the agent sees in a grid, and names its commands, after BabyAI-Text (arXiv 2302.02662)."""

from __future__ import annotations

from typing import Any

COMMANDS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
"""The commands; the place of each is its action in minigrid."""

NOTHING = "You see nothing"
_DOOR_STATES = ("open", "closed", "locked")  # minigrid.core.constants.STATE_TO_IDX


def _steps(number: int, direction: str) -> str:
    return f"{number} step{'' if number == 1 else 's'} {direction}"


def distance(sideways: int, forward: int) -> str:
    """Words for a relative position; `sideways` is negative on the left.

    >>> distance(-1, 2), distance(0, 1)
    ('1 step left and 2 steps forward', '1 step forward')
    """
    side = [_steps(abs(sideways), "left" if sideways < 0 else "right")] if sideways else []
    ahead = [_steps(forward, "forward")] if forward else []
    return " and ".join([*side, *ahead])


def describe(image: Any) -> str:
    """Returns what an observation shows, one sentence a line.

    image: [V, V, 3] integers, minigrid's view: type, color and state of each cell that the agent sees from the middle
    of the last row, looking to the first. The agent's own cell holds what it carries.

    The lines are: what is carried; the nearest visible wall ahead, on the left and on the right; then the objects and
    doors from left to right, near ones first.
    """
    from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

    size = len(image)
    middle, last = size // 2, size - 1
    kinds = [[IDX_TO_OBJECT[int(image[i][j][0])] for j in range(size)] for i in range(size)]

    def thing(i: int, j: int) -> str:
        kind, color = kinds[i][j], IDX_TO_COLOR[int(image[i][j][1])]
        state = f"{_DOOR_STATES[int(image[i][j][2])]} " if kind == "door" else ""
        words = f"{state}{color} {kind}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    lines = []
    if kinds[middle][last] not in ("unseen", "empty"):
        lines.append(f"You carry {thing(middle, last)}")
    ways = (
        [(0, k) for k in range(1, size)], [(-k, 0) for k in range(1, middle + 1)],
        [(k, 0) for k in range(1, middle + 1)],
    )  # fmt: skip
    for way in ways:
        walls = [place for place in way if kinds[middle + place[0]][last - place[1]] == "wall"]
        if walls:
            lines.append(f"You see a wall {distance(*walls[0])}")
    for i in range(size):
        for j in reversed(range(size)):
            if kinds[i][j] not in ("unseen", "empty", "wall", "floor") and (i, j) != (middle, last):
                lines.append(f"You see {thing(i, j)} {distance(i - middle, last - j)}")
    if not lines or (len(lines) == 1 and lines[0].startswith("You carry")):
        lines.append(NOTHING)
    return "\n".join(lines)


def effective_commands(level_env: Any) -> tuple[str, ...]:
    """The commands that would change the state of a `MiniGridEnv`, in the order of `COMMANDS`."""
    front, carrying = level_env.grid.get(*level_env.front_pos), level_env.carrying
    locked = has_key = False
    if front is not None and front.type == "door":
        locked = front.is_locked
        has_key = carrying is not None and (carrying.type, carrying.color) == ("key", front.color)
    works = {
        "turn left": True,
        "turn right": True,
        "go forward": front is None or front.can_overlap(),
        "pick up": carrying is None and front is not None and front.can_pickup(),
        "drop": carrying is not None and front is None,
        "toggle": front is not None and front.type in ("door", "box") and (not locked or has_key),
    }
    return tuple(command for command in COMMANDS if works[command])
