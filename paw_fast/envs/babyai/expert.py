"""Demonstrates BabyAI with the bot of `minigrid`."""

from __future__ import annotations

from typing import Any

from paw_fast.envs.babyai.levels import make_level
from paw_fast.envs.babyai.text import COMMANDS, effective_commands
from paw_fast.envs.base import BaseExpert
from paw_fast.types import Observation


class BotExpert(BaseExpert):
    """Follows `minigrid.utils.baby_ai_bot.BabyAIBot`, which plans with what the episode has shown.

    The bot needs the level itself: the expert repeats the episode in a level of its own, from the observations' notes.
    Where the bot gives up (an opened box, a level that it does not know), the expert turns until the episode ends.
    """

    def __init__(self) -> None:
        self._level_envs: dict[str, Any] = {}

    @property
    def token_pattern(self) -> str:
        """The commands, and the phrases of a view."""
        return r"turn left|turn right|go forward|pick up|You see an?|You carry an?| steps? (?:left|right|forward)"

    def reset(self, observation: Observation) -> None:
        """Starts an episode. Raises `ValueError` for an observation of another environment."""
        level = observation.notes.get("level")
        if level is None:
            raise ValueError("not an observation of babyai: it has no notes for the expert")
        from minigrid.utils.baby_ai_bot import BabyAIBot

        if level not in self._level_envs:
            self._level_envs[level] = make_level(level)
        self._level_env = self._level_envs[level]
        self._level_env.reset(seed=observation.notes["seed"])
        self._num_seen, self._failed = 0, False
        try:
            self._bot = BabyAIBot(self._level_env)
        except Exception:  # the bot asserts what it does not know
            self._failed = True
        self._plan(None)

    def act(self, observation: Observation) -> str:
        """Returns the next command."""
        commands = observation.notes["commands"]
        for command in commands[self._num_seen :]:
            effective = command in effective_commands(self._level_env)
            if command in COMMANDS:
                self._level_env.step(COMMANDS.index(command))
            if effective:  # else nothing has changed, and the plan stands
                self._plan(COMMANDS.index(command))
        self._num_seen = len(commands)
        if self._failed or self._action is None:
            return "turn left"
        if self._action < len(COMMANDS):
            return COMMANDS[self._action]
        return self._wait()

    def _plan(self, taken: int | None) -> None:
        if not self._failed:
            try:
                action = self._bot.replan(taken)
                self._action = None if action is None else int(action)
            except Exception:  # DisappearedBoxError, or an assertion of the bot
                self._failed = True

    def _wait(self) -> str:
        """The bot is done: the mission was fulfilled when it began. Any command that leaves the agent where it is and
        looks ends the episode."""
        works = effective_commands(self._level_env)
        return next((command for command in ("pick up", "toggle") if command in works), "go forward")
