"""Demonstrates ScienceWorld with the simulator's own solutions."""

from __future__ import annotations

from typing import Any

from paw_fast.envs.base import BaseExpert
from paw_fast.envs.scienceworld.config import ScienceWorldConfig
from paw_fast.envs.scienceworld.jvm import Jvm
from paw_fast.types import Observation

LOOK = "look around"


class GoldExpert(BaseExpert):
    """Follows the action sequence by which the simulator solves the task ("gold path").

    It plays the sequence without looking: where other commands have changed something, it may fail. The simulator
    takes 1 to 15 s to find a sequence, in a JVM of the expert's own; sequences are kept by task.
    """

    noop_command = LOOK

    def __init__(self, config: ScienceWorldConfig) -> None:
        self._jvm, self._simulator = Jvm(config.jvm_memory_mb), None
        self._num_starts = -1
        self._paths: dict[tuple[str, int, str], tuple[str, ...]] = {}
        self._left: list[str] = []

    @property
    def token_pattern(self) -> str:
        """The most common commands, and the phrases of a room."""
        return (
            r"look around|open door to |go to |focus on |pick up |move | in inventory to |wait1|wait"
            r"|This room is called the |In it, you see:|You also see:|\(that is closed\)|\(that is open\)"
            r"|The door is (?:now|already) open\.|You move to the "
        )

    def reset(self, observation: Observation) -> None:
        """Starts an episode. Raises `ValueError` for an observation of another environment."""
        notes = observation.notes
        if "variation" not in notes:
            raise ValueError("not a first observation of scienceworld: it has no notes for the expert")
        key = (notes["task"], notes["variation"], notes["simplifications"])
        if key not in self._paths:
            self._paths[key] = self._solve(*key)
        self._left = list(self._paths[key])

    def act(self, observation: Observation) -> str:
        """Returns the next command; `look around` when the sequence is over."""
        return self._left.pop(0) if self._left else LOOK

    def is_useless(self, command: str, observation: Observation) -> bool:
        """Whether it only looks. What other commands do cannot be told from an observation."""
        return command == LOOK

    def _solve(self, task: str, variation: int, simplifications: str) -> tuple[str, ...]:
        if self._simulator is None or self._num_starts != self._jvm.num_starts:
            self._simulator = self._jvm.new_simulator()
            self._num_starts = self._jvm.num_starts
        simulator: Any = self._simulator
        self._jvm.call(simulator.load, task, variation, simplifications, True)
        return tuple(map(str, self._jvm.call(simulator.getGoldActionSequence)))
