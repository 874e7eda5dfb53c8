"""Parses the options of a command into its dataclass; every mistake is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import tyro

from paw_fast.errors import UserError

PROGRAM = "paw-fast"


def _flags(cls: type, prefix: str = "", default: Any = None) -> set[str]:
    """Every option name of a config dataclass, as tyro spells them."""
    import typing

    hints = typing.get_type_hints(cls, include_extras=True)
    names: set[str] = set()
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint):
            value = getattr(default, f.name, None)
            inner = type(value) if value is not None else hint
            names |= _flags(typing.cast(type, inner), f"{prefix}{f.name}.", value)
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
    known = _flags(cls, default=default) | {"-h", "--help", *extra}
    for arg in args:
        flag = arg.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; see {PROGRAM} {command} --help"
            raise UserError(f"unknown option {arg.split('=')[0]}{hint}")
    try:
        with _one_line_errors():
            if default is None:
                return tyro.cli(cls, args=list(args), prog=f"{PROGRAM} {command}")
            return tyro.cli(cls, args=list(args), prog=f"{PROGRAM} {command}", default=default)
    except SystemExit as e:
        if e.code in (0, None):
            raise
        raise UserError(_last_error(cls, args, command)) from None


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
