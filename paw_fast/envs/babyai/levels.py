"""Finds and creates the levels of BabyAI that `minigrid` registers."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from paw_fast.errors import UserError
from paw_fast.extras import install_hint

PREFIX = "BabyAI-"


def check_installed(levels: Sequence[str] = ()) -> None:
    """Raises `UserError` if minigrid is not installed, if its settings make missions impossible, or if it does not have
    one of the levels."""
    missing = [name for name in ("gymnasium", "minigrid") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--env babyai needs {' and '.join(missing)}: {install_hint('babyai')}")
    if os.environ.get("BABYAI_DONE_ACTIONS"):
        raise UserError(
            "--env babyai: BABYAI_DONE_ACTIONS is set, which lets minigrid count a mission as done only after a "
            "command that this environment does not have: unset it"
        )
    for level in levels:
        level_id(level)


def level_ids() -> dict[str, str]:
    """The levels' ids in gymnasium by their short names, as in `{"GoToLocal": "BabyAI-GoToLocal-v0"}`."""
    _import_minigrid()
    from gymnasium.envs.registration import registry

    found = sorted((name for name in registry if name.startswith(PREFIX)), key=_version)
    return {short_name(name): name for name in found}


def _version(name: str) -> int:
    version = name.rpartition("-v")[2]
    return int(version) if version.isdigit() else 0


def short_name(level: str) -> str:
    """
    >>> short_name("BabyAI-GoToLocal-v0"), short_name("GoToLocal")
    ('GoToLocal', 'GoToLocal')
    """
    stem, _, version = level.removeprefix(PREFIX).rpartition("-v")
    return stem if stem and version.isdigit() else level.removeprefix(PREFIX)


def level_id(level: str) -> str:
    """Returns the id in gymnasium of a level given as `GoToLocal`, `GoToLocal-v0` or `BabyAI-GoToLocal-v0`.

    Raises `UserError` for a level that does not exist, with the nearest name.
    """
    known = level_ids()
    found = known.get(short_name(level))
    if found is None or level.removeprefix(PREFIX) not in (short_name(found), found.removeprefix(PREFIX)):
        close = difflib.get_close_matches(short_name(level), known, n=3, cutoff=0.4) or sorted(known)[:8]
        raise UserError(f"--env.levels {level}: minigrid has no such level; did you mean {', '.join(close)}?")
    return found


def make_level(level: str) -> Any:
    """Creates the `minigrid.minigrid_env.MiniGridEnv` of a level, without gymnasium's wrappers. Raises `UserError`."""
    name = level_id(level)
    import gymnasium

    return gymnasium.make(name, disable_env_checker=True).unwrapped


def layout_of(level_env: Any) -> str:
    """Hex digest of all that decides the current episode: grid, mission, place, direction and what is carried."""
    digest = hashlib.sha256(level_env.grid.encode().tobytes())
    carrying = level_env.carrying
    carried = None if carrying is None else (carrying.type, carrying.color)
    place = tuple(map(int, level_env.agent_pos))
    digest.update(repr((level_env.mission, place, int(level_env.agent_dir), carried)).encode())
    return digest.hexdigest()


def _import_minigrid() -> None:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame greets on standard output
    import minigrid  # noqa: F401  # registers the levels
    from minigrid.envs.babyai.core import roomgrid_level

    # The generator of levels prints a line for each layout that it rejects.
    roomgrid_level.__dict__["print"] = lambda *args, **kwargs: None
