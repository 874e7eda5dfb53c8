"""Parses the options of a command into its dataclass; every mistake becomes one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from paw_fast import registry
from paw_fast.cli import aliases, help
from paw_fast.cli.option_table import HELP, PROGRAM, Option, options_of
from paw_fast.config import TrainConfig
from paw_fast.config.choice import registered_configs
from paw_fast.config.ranges import check_ranges
from paw_fast.config.renames import rename_options
from paw_fast.errors import UserError


def parse(cls: type, args: Sequence[str], command: str, default: Any = None, extra: Sequence[str] = ()) -> Any:
    """Reads the options of a command; raises `UserError` with one line for each mistake.

    default: settings that options change. extra: options that were taken out before, for suggestions.
    """
    options = options_of(cls, default)
    unused = unused_tables(default)
    options = [one for one in options if one.name.removeprefix("--").partition(".")[0] not in unused]
    args = list(args)
    if not set(HELP).isdisjoint(args):
        print(help.command_help(cls, options, command))
        raise SystemExit(0)
    rename_options(args)
    named = {one.name: one for one in options if not one.positional}
    known = {*named, *(one.off for one in options if one.off), *extra, *HELP}
    if isinstance(default, TrainConfig):
        args = aliases.expand(args, known)
    checked = _check(args, options, known, command, default)
    try:
        with _quiet():
            more: dict[str, Any] = {} if default is None else {"default": default}
            parsed = tyro.cli(cls, args=checked, prog=f"{PROGRAM} {command}", **more)
    except SystemExit:
        raise UserError(f"cannot read the options: {' '.join(checked)} (see {PROGRAM} {command} --help)") from None
    if not isinstance(default, TrainConfig):  # which is validated as a whole
        check_ranges(parsed)
    return parsed


def _check(args: Sequence[str], options: Sequence[Option], known: set[str], command: str, default: Any) -> list[str]:
    """The arguments in one form for tyro (`--name=value`), after each was checked."""
    named = {one.name: one for one in options if not one.positional}
    off = {one.off: one for one in options if one.off}
    positional = [one for one in options if one.positional]
    see = f"see {PROGRAM} {command} --help"
    result, loose, rest = [], [], list(args)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("-") or arg == "-" or _is_number(arg):
            loose.append(arg)
            continue
        name, equals, value = arg.partition("=")
        flag = name.replace("_", "-")
        option = named.get(flag) or off.get(flag)
        if option is None:
            if flag in known:
                raise UserError(f"{flag} is given twice")
            hint = _owner(flag, default) or aliases.suggest(flag, known)
            raise UserError(hint if hint.startswith(flag) else f"unknown option {name}; {hint or see}")
        if option.is_switch:
            result.append(_switch(option, flag, value if equals else None, rest))
            continue
        if option.is_list:
            values = [value] if equals else _values(rest)
            if not values:
                raise UserError(f"{flag} needs one or more values")
            result += [flag, *values]
            continue
        if not equals:
            if not rest or (rest[0].startswith("-") and rest[0] != "-" and not _is_number(rest[0])):
                raise UserError(f"{flag} needs a value")
            value = rest.pop(0)
        result.append(f"{flag}={check_value(option.hint, value, flag)}")
    takes_all = any(one.is_list for one in positional)
    if len(loose) > len(positional) and not takes_all:
        extra = loose[len(positional)]
        near = aliases.suggest(f"--{extra}", known)
        raise UserError(f"{extra!r} is no option of {PROGRAM} {command}; {near or 'options begin with --'}")
    required = [one for one in positional if one.value is dataclasses.MISSING and not one.is_list]
    if len(loose) < len(required):
        raise UserError(f"{PROGRAM} {command} needs {required[len(loose)].name}; {see}")
    if any(one.value is dataclasses.MISSING and one.is_list for one in positional) and not loose:
        raise UserError(f"{PROGRAM} {command} needs one or more {positional[-1].name}; {see}")
    missing = [one.name for one in named.values() if one.value is dataclasses.MISSING]
    for name in missing:
        if not any(one == name or one.startswith(f"{name}=") for one in result):
            raise UserError(f"{PROGRAM} {command} needs {name}; {see}")
    return [*result, *(["--", *loose] if any(one.startswith("-") for one in loose) else loose)]


def _values(rest: list[str]) -> list[str]:
    """Takes the values of a list off the arguments."""
    values = []
    while rest and not rest[0].startswith("-"):
        values.append(rest.pop(0))
    return values


def _switch(option: Option, flag: str, value: str | None, rest: list[str]) -> str:
    """The form of a switch that tyro reads; `--paw.enabled false` turns it off, as in other trainers."""
    on, taken = flag == option.name, ("true", "false", "none") if option.is_open_switch else ("true", "false")
    if value is None and rest and rest[0].lower() in taken:
        value = rest.pop(0)
    if value is not None:
        if value.lower() not in taken:
            raise UserError(f"{flag} is a switch and takes no value, got {value!r}: say {option.name} or {option.off}")
        if value.lower() == "none":
            return f"{option.name}=None"
        on = on == (value.lower() == "true")
    if option.is_open_switch:
        return f"{option.name}={on}"
    return option.name if on else str(option.off)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_value(hint: Any, text: str, flag: str) -> str:
    """The text of a value as tyro reads it. Raises `UserError` where it is not of the type.

    >>> check_value(float | None, "none", "--x"), check_value(int, "3", "--x")
    ('None', '3')
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [one for one in typing.get_args(hint) if one is not type(None)]
        if text.lower() == "none" and len(kinds) < len(typing.get_args(hint)):
            return "None"
        return check_value(kinds[0], text, flag)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if text in choices:
            return text
        if text.lower() in choices:
            return text.lower()
        raise UserError(f"{flag} is {text!r}, expected one of {', '.join(map(str, choices))}")
    if hint in (int, float):
        try:
            hint(text)
        except ValueError:
            kind = "an integer" if hint is int else "a number"
            shown = text if len(text) < 60 else f"{text[:40]}..."
            raise UserError(f"{flag} is {shown!r}, expected {kind}") from None
    if hint is Path and not text:
        raise UserError(f"{flag} is empty, expected a path")
    return text


def unused_tables(default: Any) -> set[str]:
    """Tables of a run's settings that the chosen algorithm does not use."""
    if not isinstance(default, TrainConfig):
        return set()
    return set() if registry.find("algorithms", default.algo.name).needs_critic else {"critic"}


def _owner(flag: str, default: Any) -> str:
    """What to say of an option that belongs to another environment or algorithm; empty for other options."""
    table = flag.removeprefix("--").partition(".")[0]
    if table in unused_tables(default):
        return f"{flag} is a setting of algorithms that need a critic, and --algo is {default.algo.name}"
    group = {"env": "environments", "algo": "algorithms"}.get(table)
    chosen = getattr(default, table, None)
    if group is None or chosen is None:
        return ""
    owners = [
        name for name, config in registered_configs(group)
        if any(flag in (one.name, one.off) for one in options_of(type(config), config, f"{table}."))
    ]  # fmt: skip
    return f"{flag} is a setting of {', '.join(owners)}, and --{table} is {chosen.name}" if owners else ""


@contextlib.contextmanager
def _quiet():
    """Keeps tyro's boxed messages off the screen."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def take(args: list[str], name: str) -> str | None:
    """Takes `--name value` or `--name=value` out of the arguments. Raises `UserError` where it is given twice."""
    found: list[str] = []
    i = 0
    while i < len(args):
        key, equals, value = args[i].partition("=")
        if key.replace("_", "-") != f"--{name}":
            i += 1
            continue
        if not equals:
            if i + 1 >= len(args) or args[i + 1].startswith("-"):
                raise UserError(f"--{name} needs a value")
            value = args.pop(i + 1)
        del args[i]
        found.append(value)
    if len(found) > 1:
        raise UserError(f"--{name} is given {len(found)} times: {', '.join(found)}")
    return found[0] if found else None


def take_switch(args: list[str], name: str) -> bool:
    """Takes `--name` out of the arguments; returns whether it was there."""
    found = f"--{name}" in args
    args[:] = [arg for arg in args if arg != f"--{name}"]
    return found
