"""Writes the help of the commands: of `paw-fast train` the settings that most people change, a group, or all."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from paw_fast.cli.aliases import ALIASES
from paw_fast.cli.help_texts import EXAMPLES, MAIN_OPTIONS, TERMS, TRAIN_EXAMPLES, TRAIN_OPTIONS
from paw_fast.cli.option_table import PROGRAM, Option, default_of, options_of
from paw_fast.config import AlgoConfig, EnvConfig, TrainConfig
from paw_fast.config.field_texts import field_texts
from paw_fast.errors import UserError

_SHARED = {"env": EnvConfig, "algo": AlgoConfig}
_GLUE = "\N{NO-BREAK SPACE}"
"""A space at which no line breaks."""
_OWN_SHOWN = 6
"""How many of its own settings an environment or algorithm shows if its `MAIN_FIELDS` do not say which."""


def command_help(cls: type, options: Sequence[Option], command: str) -> str:
    """The help of a command other than train."""
    positional = " ".join(
        f"{one.name}{'...' if one.is_list else ''}" if one.value is dataclasses.MISSING else f"[{one.name}]"
        for one in options if one.positional
    )  # fmt: skip
    parts = [f"usage: {PROGRAM} {command} {positional + ' ' if positional else ''}[OPTIONS]", _doc(cls)]
    if examples := EXAMPLES.get(command):
        parts.append(_block("examples", [_row(text, meaning, 46) for text, meaning in examples]))
    parts.append(_block("options", map(_entry, sorted(options, key=lambda one: not one.positional))))
    return "\n\n".join(parts) + "\n"


def train_help(config: TrainConfig, preset: str, topic: str | None, unused: Iterable[str] = ()) -> str:
    """The help of `paw-fast train`.

    config: the settings of the run that would start, whose values are shown as the defaults. preset: where they come
    from, in words. topic: `None` for the main options, `all`, or the name of a group. unused: tables without effect.
    Raises `UserError` for another topic.
    """
    groups = _groups(config, unused)
    head = f"usage: {PROGRAM} train [OPTIONS]"
    known = ", ".join(groups)
    if topic is None:
        shown = {"": [one for group in groups.values() for one in group if one.name in _main_options(config)]}
        order = _main_options(config)
        shown[""].sort(key=lambda one: order.index(one.name))
        head += (
            "\n\nTrains an agent: it plays episodes, learns from their rewards, and to predict what it will observe."
        )
        head += "\n\n" + _block("examples", [_row(text, meaning, 60) for text, meaning in TRAIN_EXAMPLES])
        head += "\n\n" + _block("which run", [_row(text, meaning, 26) for text, meaning in TRAIN_OPTIONS])
        tail = (
            f"These are the settings that most people change. {PROGRAM} train --help all shows all of them, --help "
            f"GROUP those of a group: {known}.\nExit status: 0 done; 2 a mistake or a failure, told in one line; 130 "
            "stopped by Ctrl-C; 75 stopped by SIGTERM, SIGHUP or SIGUSR1. After 130 and 75 the run is saved: --resume "
            "RUN continues it."
        )
    elif topic == "all":
        shown, tail = groups, ""
    elif topic in groups:
        shown, tail = {topic: groups[topic]}, ""
    else:
        raise UserError(f"--help {topic}: no such group of settings; there are all, {known}")
    values = f"Defaults are those of this run: {preset}, --env {config.env.name}, --algo {config.algo.name}."
    parts = [head, _wrap(values)]
    for name, options in shown.items():
        title = "settings" if not name else f"{name}: {_doc(_class_of(config, name)).split('. ')[0].rstrip('.')}"
        parts.append(_block(title, map(_entry, options)))
    if terms := _terms("\n".join(parts)):
        parts.append(_block("terms", [_row(name, text, 26) for name, text in terms]))
    return "\n\n".join([*parts, *([_wrap(tail)] if tail else [])]) + "\n"


def _groups(config: TrainConfig, unused: Iterable[str]) -> dict[str, list[Option]]:
    """Every option of train by its group; those outside tables are the group `run`."""
    groups: dict[str, list[Option]] = {"run": []}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value) and f.name not in unused:
            groups[f.name.replace("_", "-")] = options_of(type(value), value, f"{f.name}.")
    groups["run"] = [one for one in options_of(type(config), config) if one.owner is type(config)]
    return groups


def _class_of(config: TrainConfig, group: str) -> type:
    return type(config) if group == "run" else type(getattr(config, group.replace("-", "_")))


def _main_options(config: TrainConfig) -> list[str]:
    """Names of the options that most people change, with those of the run's environment and algorithm, in order."""
    names: list[str] = []
    for one in MAIN_OPTIONS:
        if one in ("env", "algo"):
            part = getattr(config, one)
            shared = {f.name for f in dataclasses.fields(_SHARED[one])}
            own = [f.name for f in dataclasses.fields(part) if f.name not in shared]
            own = [name for name in own if not dataclasses.is_dataclass(getattr(part, name))]
            names += [f"--{one}.{name}".replace("_", "-") for name in (type(part).MAIN_FIELDS or own[:_OWN_SHOWN])]
        elif not one.startswith("--warm-start") or config.model.path == "tiny":
            names.append(one)
    return names


# ----------------------------------------------------------------------------------------------------- layout


def _entry(one: Option) -> str:
    """An option with its text and default."""
    names = one.name
    if one.off:
        names += f", {one.off}"
    elif not one.positional:
        names += f" {_metavar(one.hint)}"
    other = [alias for alias, full in ALIASES.items() if full in (one.name, one.off) and one.prefix]
    text = field_texts(one.owner).get(one.field, "").replace("`", "")
    if one.value != default_of(one.owner.__dataclass_fields__[one.field]):  # the preset's value is not from there
        text = re.sub(r" \((default from [^)]*|our choice)\)", "", text)
    notes = []
    if other:
        notes.append(f"also {', '.join(other)}")
    if one.value is dataclasses.MISSING:
        notes.append("required")
    elif not one.positional:
        notes.append(f"default:{_GLUE}{_shown(one.value)}")
    return _row(names, f"{text} ({'; '.join(notes)})" if notes else text, 34)


def _metavar(hint: Any) -> str:
    """
    >>> _metavar(int), _metavar(Literal["a", "b"]), _metavar(float | None), _metavar(tuple[str, ...])
    ('N', 'a|b', 'X', 'TEXT...')
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return _metavar(next(one for one in typing.get_args(hint) if one is not type(None)))
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"{_metavar(typing.get_args(hint)[0])}..."
    return {int: "N", float: "X", str: "TEXT", Path: "PATH"}.get(hint, "VALUE")


def _shown(value: Any) -> str:
    """
    >>> _shown(True), _shown(None), _shown(()), _shown(1e-6)
    ('on', 'none', 'empty', '1e-06')
    """
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return "empty" if value in ("", ()) else str(value)


def _width() -> int:
    return max(60, min(110, shutil.get_terminal_size((100, 24)).columns))


def _row(name: str, text: str, indent: int) -> str:
    """A name with its text beside it, or below it where the name is long or the screen narrow."""
    width = _width()
    indent = indent if width >= 90 else 8
    lines = textwrap.wrap(text, width - indent, break_long_words=False, break_on_hyphens=False)
    first = f"  {name}"
    if len(name) + 4 <= indent and lines:
        first = first.ljust(indent) + lines.pop(0)
    return "\n".join([first, *(" " * indent + line for line in lines)]).replace(_GLUE, " ")


def _wrap(text: str) -> str:
    return "\n".join(textwrap.fill(line, _width(), break_on_hyphens=False) for line in text.splitlines())


def _block(title: str, rows: Iterable[str]) -> str:
    return "\n".join([f"{title}:", *rows])


def _doc(cls: type) -> str:
    text = inspect.getdoc(cls) or ""
    return _wrap("\n".join(" ".join(part.split()) for part in text.split("\n\n")))


def _terms(shown: str, terms: Mapping[str, str] = TERMS) -> list[tuple[str, str]]:
    """The terms that a help text uses, with their meaning."""
    plain = " ".join(shown.split())
    return [(name, text) for name, text in terms.items() if re.search(rf"\b{re.escape(name)}", plain, re.IGNORECASE)]
