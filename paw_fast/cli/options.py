"""Parses the options of a command into its dataclass; every mistake becomes one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Sequence
from typing import Any

import tyro

from paw_fast import registry
from paw_fast.config import TrainConfig
from paw_fast.config.choice import registered_configs
from paw_fast.config.renames import rename_options
from paw_fast.errors import UserError

PROGRAM = "paw-fast"


def _options(cls: type, default: Any = None, prefix: str = "") -> set[str]:
    """Every option name of a config dataclass, as tyro spells them. A nested field has the options of its default's
    class, which is that of the chosen environment or algorithm."""
    hints = typing.get_type_hints(cls, include_extras=True)
    names: set[str] = set()
    for f in dataclasses.fields(cls):
        hint, value = hints[f.name], getattr(default, f.name, None)
        if dataclasses.is_dataclass(hint):
            inner = type(value) if value is not None else hint
            names |= _options(typing.cast("type", inner), value, f"{prefix}{f.name}.")
            continue
        marks = getattr(hint, "__metadata__", ())
        own = next((m for m in marks if getattr(m, "name", None)), None)
        name = own.name if own is not None else prefix + f.name
        names.add("--" + name.replace("_", "-"))
        if hint is bool:
            names.add("--" + (prefix + "no-" + f.name).replace("_", "-"))
    return names


def parse(cls: type, args: Sequence[str], command: str, default: Any = None, extra: Sequence[str] = ()) -> Any:
    """Parses with tyro; an unknown option is one line that names the nearest one."""
    args = list(args)
    rename_options(args)
    unused = _unused_tables(default)
    known = {one for one in _options(cls, default) if one.removeprefix("--").partition(".")[0] not in unused}
    known |= {"-h", "--help", *extra}
    for arg in args:
        flag = arg.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            if owner := _owner(flag, default):
                raise UserError(owner)
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; see {PROGRAM} {command} --help"
            raise UserError(f"unknown option {arg.split('=')[0]}{hint}")
    if unused and not {"-h", "--help"}.isdisjoint(args):
        cls, default = _without(cls, default, unused)
    try:
        with _one_line_errors():
            if default is None:
                return tyro.cli(cls, args=list(args), prog=f"{PROGRAM} {command}")
            return tyro.cli(cls, args=list(args), prog=f"{PROGRAM} {command}", default=default)
    except SystemExit as e:
        if e.code in (0, None):
            raise
        raise UserError(_last_error(cls, args, command)) from None


def _unused_tables(default: Any) -> set[str]:
    """Tables of a run's settings that the chosen algorithm does not use."""
    if not isinstance(default, TrainConfig):
        return set()
    return set() if registry.find("algorithms", default.algo.name).needs_critic else {"critic"}


def _without(cls: type, default: Any, tables: set[str]) -> tuple[type, Any]:
    """A class and default whose help leaves out some tables."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [(name, tyro.conf.Suppress[hints[name]], dataclasses.field(default=None)) for name in tables]
    narrowed = dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True)
    narrowed.__doc__ = cls.__doc__
    return narrowed, narrowed(**{f.name: getattr(default, f.name) for f in dataclasses.fields(cls)})


def _owner(flag: str, default: Any) -> str:
    """What to say of an option that belongs to another environment or algorithm; empty for other options."""
    table = flag.removeprefix("--").partition(".")[0]
    if table in _unused_tables(default):
        return f"{flag} is a setting of algorithms that need a critic, and --algo is {default.algo.name}"
    group = {"env": "environments", "algo": "algorithms"}.get(table)
    chosen = getattr(default, table, None)
    if group is None or chosen is None:
        return ""
    owners = [name for name, config in registered_configs(group) if flag in _options(type(config), config, f"{table}.")]
    return f"{flag} is a setting of {', '.join(owners)}, and --{table} is {chosen.name}" if owners else ""


@contextlib.contextmanager
def _one_line_errors():
    """Keeps tyro's boxed error messages off the screen; the one-line form is made from them."""
    import io

    buffer = io.StringIO()
    _captured.clear()
    with contextlib.redirect_stderr(buffer):
        try:
            yield
        finally:
            _captured.append(buffer.getvalue())


_captured: list[str] = []


def _last_error(cls: type, args: Sequence[str], command: str) -> str:
    lines = [line.strip("│╭╮╰╯─ ").strip() for line in _captured[-1].splitlines()] if _captured else []
    text = " ".join(line for line in lines if line and not line.startswith("For full helptext"))
    return f"{text or 'cannot read the options'} (see {PROGRAM} {command} --help)"


def take(args: list[str], name: str) -> str | None:
    """Takes `--name value` or `--name=value` out of the arguments."""
    for i, arg in enumerate(args):
        if arg == f"--{name}":
            if i + 1 >= len(args):
                raise UserError(f"--{name} needs a value")
            value = args[i + 1]
            del args[i : i + 2]
            return value
        if arg.startswith(f"--{name}="):
            del args[i]
            return arg.split("=", 1)[1]
    return None
