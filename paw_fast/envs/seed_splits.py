"""Tasks that are seeds: the splits of environments that generate an episode from a seed."""

from __future__ import annotations

from typing import Protocol

from paw_fast.errors import UserError

_SPLITS = {"train": "train", "unseen": "unseen", "valid_unseen": "unseen", "eval": "unseen"}
_SEEDS_PER_GAME_SEED, _FIRST_UNSEEN = 1 << 32, 1 << 31


class SeedSettings(Protocol):
    """The settings that decide the seeds of an environment's tasks."""

    @property
    def game_seed(self) -> int: ...
    @property
    def num_train(self) -> int: ...
    @property
    def num_unseen(self) -> int: ...


def seeds_of(settings: SeedSettings, split: str, env_name: str) -> tuple[str, range]:
    """Returns the split's name, "train" or "unseen" (also called "eval"), and the seeds of its tasks.

    No seed is in two splits, or in those of another `game_seed`. Raises `UserError` for an unknown split.

    >>> from types import SimpleNamespace
    >>> seeds_of(SimpleNamespace(game_seed=0, num_train=3, num_unseen=2), "eval", "babyai")
    ('unseen', range(2147483648, 2147483650))
    """
    name = _SPLITS.get(split)
    if name is None:
        raise UserError(f"{env_name} has no split {split!r}: there are train and unseen")
    first = settings.game_seed * _SEEDS_PER_GAME_SEED + (_FIRST_UNSEEN if name == "unseen" else 0)
    return name, range(first, first + (settings.num_unseen if name == "unseen" else settings.num_train))
