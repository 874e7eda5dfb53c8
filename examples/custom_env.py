"""An environment in a file of your own: fetch the lamp. Run `paw-fast train --env custom_env:Corridor` beside it."""

from dataclasses import dataclass
from typing import Annotated

from paw_fast.config.ranges import Range
from paw_fast.envs import EnvConfig, Observation, StepResult, Task


class Corridor:
    """Rooms in a row. The episode starts in room 0, and is won there with the lamp in hand."""

    @dataclass(frozen=True)
    class Config(EnvConfig):
        """A corridor with a lamp."""

        max_steps: Annotated[int, Range(1)] = 12
        """An episode ends after this many actions."""
        length: Annotated[int, Range(2)] = 4
        """Rooms of the corridor."""

    class Expert:
        """Walks right to the lamp, takes it, and walks back."""

        noop_command = "look"

        def reset(self, observation):
            self.has_lamp = False

        def act(self, observation):
            self.has_lamp = self.has_lamp or "You take" in observation.text
            return "left" if self.has_lamp else "take lamp" if "lamp is here" in observation.text else "right"

    def __init__(self, config):
        self.config = config

    def tasks(self, split):
        return [Task(f"{split}-{room}", info={"lamp": room}) for room in range(1, self.config.length)]

    def reset(self, task):
        self.room, self.lamp, self.num_steps = 0, task.info["lamp"], 0
        return self.observe("You stand in a corridor.", task="bring the lamp to room 0")

    def step(self, command):
        taken = command == "take lamp" and self.lamp == self.room
        self.lamp = None if taken else self.lamp
        self.room = min(max(self.room + {"left": -1, "right": 1}.get(command, 0), 0), self.config.length - 1)
        self.num_steps += 1
        won, over = self.room == 0 and self.lamp is None, self.num_steps >= self.config.max_steps
        seen = self.observe("You take the lamp." if taken else "")
        return StepResult(seen, done=won or over, won=won, truncated=over and not won)

    def observe(self, text, task=""):
        here = " The lamp is here." if self.lamp == self.room else ""
        text = f"{text} You are in room {self.room}.{here}".strip()
        return Observation(text, ("left", "right", "take lamp", "look"), task)
