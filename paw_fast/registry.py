"""Finds environments and algorithms by name: built-in ones, `module:Name` in a user's file, and entry points."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from paw_fast.errors import UserError


@dataclass(frozen=True)
class _Group:
    """One kind of extension. `adapt(object, name)`, if given, converts the imported object. `kinds`: functions that
    return the object of a name `KIND:ARGUMENT`, given the argument."""

    noun: str
    option: str
    built_in: dict[str, str]
    adapt: str | None = None
    kinds: dict[str, str] = field(default_factory=dict)


_GROUPS = {
    "environments": _Group(
        "environment",
        "--env",
        {
            "alfworld": "paw_fast.envs.alfworld.spec:SPEC",
            "webshop": "paw_fast.envs.webshop.spec:SPEC",
            "search": "paw_fast.envs.search_qa.spec:SPEC",
            "babyai": "paw_fast.envs.babyai.spec:SPEC",
            "scienceworld": "paw_fast.envs.scienceworld.spec:SPEC",
        },
        adapt="paw_fast.envs.user_class:as_spec",
        kinds={"gymnasium": "paw_fast.envs.gymnasium_text.spec:spec_of"},
    ),
    "algorithms": _Group(
        "algorithm",
        "--algo",
        {
            "grpo": "paw_fast.algorithms.grpo:Grpo",
            "rloo": "paw_fast.algorithms.rloo:Rloo",
            "gigpo": "paw_fast.algorithms.gigpo:Gigpo",
            "ppo": "paw_fast.algorithms.ppo:Ppo",
        },
        adapt="paw_fast.algorithms.base:as_algorithm",
    ),
}
"""Entry points are those of the group `paw_fast.<name>`, as in `paw_fast.environments`."""

_found: dict[tuple[str, str], Any] = {}


def find(group: str, name: str) -> Any:
    """Returns the `EnvSpec` of an environment (group "environments") or the class of an algorithm ("algorithms").

    name: a built-in name, `gymnasium:ID`, `module:Name` (also searched in the current folder), or the name of an entry
    point. Results are cached. Raises `UserError` for a name that does not exist or cannot be imported.

    >>> find("environments", "alfworld").name
    'alfworld'
    >>> find("environments", "alfwrld")
    Traceback (most recent call last):
    paw_fast.errors.UserError: --env alfwrld: no such environment; did you mean alfworld? There are alfworld, ...
    """
    if (group, name) not in _found:
        kind = _GROUPS[group]
        target = kind.built_in.get(name)
        if target is not None:
            found = _import(target)
        elif ":" in name and (makes := kind.kinds.get(name.partition(":")[0])) is not None:
            found = _import(makes)(name.partition(":")[2])
        elif ":" in name:
            found = _import_foreign(kind, name)
        else:
            found = _load_entry_point(kind, group, name)
        if kind.adapt is not None:
            found = _import(kind.adapt)(found, name)
        _found[group, name] = found
    return _found[group, name]


def names(group: str) -> tuple[str, ...]:
    """Returns the built-in names of a group, followed by those of its entry points."""
    built_in = _GROUPS[group].built_in
    return (*built_in, *(name for name in _entry_points(group) if name not in built_in))


def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=f"paw_fast.{group}")}


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _load_entry_point(kind: _Group, group: str, name: str) -> Any:
    point = _entry_points(group).get(name)
    if point is None:
        known = names(group)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? There are" if near else "there are"
        raise UserError(
            f"{kind.option} {name}: no such {kind.noun}; {hint} {', '.join(known)}, or module:Name from a Python file "
            "in the current folder"
        )
    try:
        return point.load()
    except Exception as error:  # an installed package can fail in any way
        raise UserError(f"{kind.option} {name}: cannot load its entry point {point.value}: {_said(error)}") from error


def _import_foreign(kind: _Group, name: str) -> Any:
    """Imports the object `module:Name`. The current folder stays on the import path, which worker processes inherit."""
    module_name, _, attribute = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's file can fail in any way
        if isinstance(error, ModuleNotFoundError) and error.name == module_name:
            raise UserError(
                f"{kind.option} {name}: there is no module {module_name} in {folder} or on PYTHONPATH"
            ) from None
        raise UserError(f"{kind.option} {name}: importing {module_name} failed: {_said(error)}") from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{kind.option} {name}: {module_name} has no {attribute!r}{hint}")
    return getattr(module, attribute)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
