"""Lists the options of a command from its dataclass."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

import tyro

PROGRAM = "paw-fast"
HELP = ("-h", "--help")
_POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]


@dataclass(frozen=True)
class Option:
    """An option of a command, or a positional argument.

    name: as it is typed, such as `--optim.learning-rate` or `RUN`. hint: its type, without `Annotated`. field, owner:
    the field's name and the dataclass that holds it. value: its default. prefix: the table's part of the name.
    """

    name: str
    hint: Any
    field: str
    owner: type
    value: Any
    prefix: str = ""
    positional: bool = False

    @property
    def off(self) -> str | None:
        """The name that turns a switch off."""
        return f"--{self.prefix}no-{self.field}".replace("_", "-") if self.is_switch else None

    @property
    def is_switch(self) -> bool:
        return self.hint is bool or self.is_open_switch

    @property
    def is_open_switch(self) -> bool:
        """Whether it is a switch that may also be None: neither on nor off, but chosen."""
        return self.hint == bool | None

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.hint) is tuple


def options_of(cls: type, default: Any = None, prefix: str = "") -> list[Option]:
    """Every option of a config dataclass, as tyro spells them. A nested field has the options of its default's class,
    which is that of the chosen environment or algorithm."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found: list[Option] = []
    for f in dataclasses.fields(cls):
        hint, value = hints[f.name], getattr(default, f.name, default_of(f))
        marks = getattr(hint, "__metadata__", ())
        inner = typing.get_args(hint)[0] if marks else hint
        if dataclasses.is_dataclass(inner):
            nested = value if dataclasses.is_dataclass(value) else None
            chosen = type(nested) if nested is not None else typing.cast("type", inner)
            found += options_of(chosen, nested, f"{prefix}{f.name}.")
            continue
        own = next((mark for mark in marks if getattr(mark, "name", None)), None)
        positional = _POSITIONAL in marks
        name = f.name.upper() if positional else "--" + (own.name if own is not None else prefix + f.name)
        name = name if positional else name.replace("_", "-")
        found.append(Option(name, inner, f.name, cls, value, prefix, positional))
    return found


def default_of(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
