"""Ranges of numeric settings, written beside the field: `steps: Annotated[int, Range(0)] = 150`."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any

from paw_fast.errors import UserError

LARGEST_COUNT = 2**31 - 1
LARGEST_SEED = 2**63 - 1
LARGEST_COEFFICIENT = 1e6
"""Larger coefficients overflow once they are multiplied: the kernels and the optimizer compute in float32."""
LONGEST_WAIT_S = 1e8
"""Three years: the largest time limit that operating systems accept."""
LEAST_VOCAB = 256 + 5
"""A token for each byte, and the special ones of the `tiny` tokenizer."""


@dataclass(frozen=True)
class Range:
    """The values that a setting may have. A bound of None is no bound; an open bound is excluded.

    Upper bounds of counts are far above any real use: they catch typing mistakes.

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
        >>> Range(0, LARGEST_COEFFICIENT, open_low=True).expected(0.0), Range(0, 1).expected(math.nan)
        ('more than 0', 'a finite number')
        """
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if isinstance(value, float) and None not in (self.low, self.high) and self.high != LARGEST_COEFFICIENT:
            low, high = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return f"a number in {low}{self.low:g}, {self.high:g}{high}"
        if (self.low is not None and not value >= self.low) or self.high is None or value == self.low:
            return f"more than {self.low:g}" if self.open_low else f"{_shown(self.low)} or more"
        return f"less than {_shown(self.high)}" if self.open_high else f"at most {_shown(self.high)}"


def _shown(bound: float | None) -> str:
    """
    >>> _shown(2**31 - 1), _shown(1e6), _shown(0.5)
    ('2147483647', '1e+06', '0.5')
    """
    return f"{bound:g}" if isinstance(bound, float) else f"{bound}"


def _typed(value: float) -> str:
    """A number as it was typed, except for integers of more than about 40 digits.

    >>> _typed(0.1 + 0.2), _typed(10**1000)
    ('0.30000000000000004', 'an integer of about 1000 digits')
    """
    bits = value.bit_length() if isinstance(value, int) else 0
    return f"an integer of about {int(bits * 0.30103)} digits" if bits > 128 else f"{value}"


SEED = Range(0, LARGEST_SEED)
SECONDS = Range(0, LONGEST_WAIT_S, open_low=True)
LEARNING_RATE = Range(0, 1, open_low=True)
TEMPERATURE = Range(1e-4, 1e3)
COEFFICIENT = Range(0, LARGEST_COEFFICIENT)
POSITIVE = Range(0, LARGEST_COEFFICIENT, open_low=True)

_ANY_INT = Range(-LARGEST_COUNT, LARGEST_COUNT)
_ANY_FLOAT = Range(-(2.0**127), 2.0**127)
"""For numbers without a range, which a user's own environment or algorithm may have: what float32 can hold."""


def range_of(hint: Any) -> Range | None:
    """The range in an annotation, None where it has none."""
    return next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Range)), None)


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raises `UserError` for the first number in a config dataclass, nested ones included, that is out of its range.

    `prefix` is put before the option's name, as in `env.`. None is allowed wherever the type allows it.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value, key = getattr(config, f.name), prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            general = _ANY_FLOAT if isinstance(value, float) else _ANY_INT
            allowed = range_of(hints[f.name]) or general
            if not allowed.contains(value):
                or_none = ", or None" if _is_optional(hints[f.name]) else ""
                raise UserError(f"--{key} is {_typed(value)}, expected {allowed.expected(value)}{or_none}")
            if not general.contains(value) and allowed.high is None:
                raise UserError(f"--{key} is {_typed(value)}, expected {general.expected(value)}")


def _is_optional(hint: Any) -> bool:
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    return type(None) in typing.get_args(inner)
