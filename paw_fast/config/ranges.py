"""Ranges of numeric settings, written beside the field: `steps: Annotated[int, Range(0)] = 150`."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from paw_fast.errors import UserError

LARGEST_SEED = 2**63 - 1
LONGEST_WAIT_S = 1e8
"""Three years: the largest time limit that operating systems accept."""


@dataclass(frozen=True)
class Range:
    """The values that a setting may have. A bound of None is no bound; an open bound is excluded.

    >>> Range(0, 1, open_low=True).contains(0.0), Range(1).contains(1)
    (False, True)
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def contains(self, value: float) -> bool:
        """Whether the value is inside; NaN never is."""
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return value == value and above and below

    def expected(self, value: float) -> str:
        """What an error says of a value outside.

        >>> Range(0, 1, open_low=True).expected(2.0), Range(1, 100).expected(0), Range(1, 100).expected(500)
        ('a number in (0, 1]', '1 or more', 'at most 100')
        """
        if isinstance(value, float) and self.low is not None and self.high is not None:
            low, high = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return f"a number in {low}{self.low:g}, {self.high:g}{high}"
        if (self.low is not None and not value >= self.low) or self.high is None:
            return f"more than {self.low:g}" if self.open_low else f"{self.low} or more"
        return f"less than {self.high}" if self.open_high else f"at most {self.high}"


def range_of(hint: Any) -> Range | None:
    """The range in an annotation, None where it has none."""
    return next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Range)), None)


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raises `UserError` for the first field of a config dataclass, nested ones included, that is out of its range.

    `prefix` is put before the option's name, as in `env.`. None is allowed wherever the type allows it.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value, key = getattr(config, f.name), prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{key}.")
        elif value is not None and (allowed := range_of(hints[f.name])) and not allowed.contains(value):
            or_none = ", or None" if type(None) in typing.get_args(typing.get_args(hints[f.name])[0]) else ""
            raise UserError(f"--{key} is {value}, expected {allowed.expected(value)}{or_none}")
