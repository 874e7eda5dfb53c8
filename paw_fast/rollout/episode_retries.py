"""Counts the episodes that are played again because their environment failed, and stops a run in which one fails too
often."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from paw_fast.envs.base import EpisodeLost
from paw_fast.errors import UserError
from paw_fast.runs import console
from paw_fast.types import EpisodeId, EpisodeRequest

MAX_BYSTANDER_RETRIES = 100
"""How often an episode is played again that was lost because of another one."""
SAID = 3
"""Number of failures that are told; the rest are counted only."""

Episode = TypeVar("Episode")


def retried(play: Callable[[], Episode], max_retries: int = 2) -> Episode:
    """Plays an episode, and again when its environment fails. Raises `EpisodeLost` after `max_retries`."""
    while True:
        try:
            return play()
        except EpisodeLost as error:
            if not max_retries:
                raise
            max_retries -= 1
            console.say(f"{error}: the episode is played again")


class Retries:
    """The failures of the episodes that are in flight.

    max_retries: how often an episode that may itself be the cause is played again.
    """

    def __init__(self, max_retries: int) -> None:
        self._max_retries = max_retries
        self._failures: dict[EpisodeId, tuple[int, int]] = {}
        self._num_new = self._num_said = 0

    def add(self, request: EpisodeRequest, error: EpisodeLost) -> None:
        """Counts a failure of the episode. Raises `UserError` if it has failed too often to be played again."""
        own, others = self._failures.get(request.episode_id, (0, 0))
        own, others = own + error.caused, others + (not error.caused)
        self._failures[request.episode_id] = own, others
        if own > self._max_retries or others > MAX_BYSTANDER_RETRIES:
            raise UserError(
                f"{error}; this episode has failed {own + others} times: repair the environment or leave the task out, "
                f"or give it more time (--env.time-limit-s) or more tries (--env.max-retries, {self._max_retries})"
            ) from error
        self._num_new += 1
        if error.caused and self._num_said < SAID:
            self._num_said += 1
            last = "; further failures are only counted, in rollout/retried_episodes" if self._num_said == SAID else ""
            console.say(f"{error}: the episode is played again{last}")

    def ended(self, request: EpisodeRequest) -> None:
        """Forgets the failures of an episode that has ended: an evaluation plays it again under the same id."""
        self._failures.pop(request.episode_id, None)

    def forget(self) -> None:
        """Forgets the failures of episodes that are abandoned."""
        self._failures.clear()

    def take_metrics(self) -> dict[str, float]:
        """The number of episodes that were played again since the last call, if there are any."""
        num, self._num_new = self._num_new, 0
        return {"rollout/retried_episodes": float(num)} if num else {}
