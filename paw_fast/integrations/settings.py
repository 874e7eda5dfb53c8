"""Defines `PawConfig`, the settings that PaW adds to those of another trainer."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Annotated, Any

from paw_fast import config
from paw_fast.config.ranges import POSITIVE, range_of
from paw_fast.errors import UserError


@dataclass(frozen=True)
class PawConfig(config.PawConfig):
    """Settings of the world-model loss: those of `paw_fast.config.PawConfig`, and the largest return.

    `update="alternate"`, a `target` other than "actual", `selection="surprise"` and a `horizon` above 1 need a training
    loop of their own and are refused with `UserError`, as are a `token_fraction` below 1 and values out of their range.

    >>> PawConfig(alpha=0.5).tau
    0.2
    """

    success_reward: Annotated[float, POSITIVE] = 1.0
    """Largest return of an episode: the sum of its rewards, weighted by `reward_weights`. The weight of the world-model
    loss falls to 0 as the mean return of a group approaches it (R_max in the PaW paper). The `success_reward` of
    paw-fast's own trainer is 10, the reward of its environments for a success."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            allowed = range_of(hint)
            if typing.get_origin(hint) is typing.Literal:
                if value not in typing.get_args(hint):
                    raise UserError(f"PawConfig: {field.name} is {value!r}, expected {_one_of(typing.get_args(hint))}")
            elif allowed is not None and not _is_number(value):
                raise UserError(f"PawConfig: {field.name} is {value!r}, expected a number")
            elif allowed is not None and not allowed.contains(value):
                raise UserError(f"PawConfig: {field.name} is {value}, expected {allowed.expected(value)}")
            elif hint is bool and not isinstance(value, bool):
                raise UserError(f"PawConfig: {field.name} is {value!r}, expected True or False")
        if self.update != "joint":
            raise UserError(
                "PawConfig: update='alternate' is not supported in other trainers, whose loops have no separate "
                "optimizer step for the world model: use 'joint', or train with paw-fast"
            )
        if self.target != "actual":
            raise UserError(
                f"PawConfig: target={self.target!r} is not supported in other trainers, which train on whole episodes: "
                "use 'actual', or train with paw-fast"
            )
        if self.selection == "surprise":
            raise UserError(
                "PawConfig: selection='surprise' is not supported in other trainers, which do not always compute the "
                "log-probs of the policy before the update: use 'entropy', or train with paw-fast"
            )
        if self.horizon != 1:
            raise UserError(
                f"PawConfig: horizon is {self.horizon}: other trainers train on whole episodes, which needs 1; use 1, "
                "or train with paw-fast --layout window"
            )
        if self.token_fraction != 1.0:
            raise UserError(
                f"PawConfig: token_fraction is {self.token_fraction}: in other trainers all selected observation "
                "tokens are used; use 1, or train with paw-fast"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
