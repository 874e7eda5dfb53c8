"""Finds game files, says which cannot be played, and compiles games of which there is only the description."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from paw_fast.envs.base import one_line
from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs.cached_folder import cached_folder

_SPLITS = {"train": "train", "unseen": "unseen", "valid_unseen": "unseen", "eval": "unseen"}
_UNSEEN_FOLDERS = ("unseen", "valid", "test")
_Z_MACHINE = re.compile(r"\.z[1-8]")


def is_game(path: Path) -> bool:
    """Whether the name of a file is that of a game, leaving out the descriptions of compiled games beside them."""
    if path.suffix == ".json":
        return not path.with_suffix(".z8").exists()
    return bool(_Z_MACHINE.fullmatch(path.suffix))


def find_games(path: Path, env_name: str) -> list[Path]:
    """The game at a path, or all games in a folder in the order of their names. Raises `UserError` where there is
    none."""
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and is_game(file))
        if not found:
            raise UserError(f"--env {env_name}: {path} holds no games, expected .z8 or .json files (made by tw-make)")
        return found
    if not path.is_file():
        raise UserError(f"--env {env_name}: there is no file or folder {path}")
    check_format(path, env_name)
    return [path]


def check_format(path: Path, env_name: str) -> None:
    """Raises `UserError` for files that TextWorld does not play, with what plays them."""
    if path.suffix == ".json" or _Z_MACHINE.fullmatch(path.suffix):
        return
    hint = {
        ".ulx": "Glulx games are not supported by TextWorld 1.7: make it again with tw-make --output game.z8",
        ".tw-pddl": "it is a game of ALFWorld: --env alfworld --env.data FOLDER",
    }.get(path.suffix, "expected .z8 or .json (made by tw-make), or a .z1 to .z8 game that Jericho supports")
    raise UserError(f"--env {env_name}: {path.name} cannot be played: {hint}")


def split_games(games: Sequence[Path], folder: Path, split: str, env_name: str) -> tuple[str, list[Path]]:
    """The split's name, "train" or "unseen", and its games.

    Those in the subfolders `train` and `unseen` (or `valid`, `test`), if there are both; else the last fifth, rounded
    up, is unseen. A single game is in both splits. Raises `UserError` for other splits.
    """
    name = _SPLITS.get(split)
    if name is None:
        raise UserError(f"{env_name} has no split {split!r}: there are train and unseen")
    if len(games) == 1:
        return name, list(games)
    top = {game: game.relative_to(folder).parts[0] for game in games} if folder.is_dir() else {}
    train = [game for game in games if top.get(game) == "train"]
    unseen = [game for game in games if top.get(game) in _UNSEEN_FOLDERS]
    if not (train and unseen):
        num_unseen = -(-len(games) // 5)
        train, unseen = list(games[:-num_unseen]), list(games[-num_unseen:])
    return name, train if name == "train" else unseen


def check_installed(env_name: str, games: Sequence[Path]) -> None:
    """Raises `UserError` if TextWorld, or Jericho for compiled games, is missing."""
    if importlib.util.find_spec("textworld") is None:
        raise UserError(f"--env {env_name} needs TextWorld: {install_hint('textworld')}")
    if importlib.util.find_spec("jericho") is None:
        raise UserError(f"--env {env_name}: {games[0].name} needs Jericho, its interpreter: pip install jericho")


def compiled(path: Path, cache_dir: Path, env_name: str) -> Path:
    """The compiled game of a file: itself, or for the `.json` description of a game without a `.z8` beside it a file in
    the cache, compiled once. Raises `UserError` if it cannot be compiled."""
    if path.suffix != ".json":
        return path
    data = path.read_bytes()
    folder = cache_dir / "textworld" / hashlib.sha256(data).hexdigest()[:24]

    def build(hidden: Path) -> None:
        from textworld.generator import compile_game
        from textworld.generator.game import Game, GameOptions

        options = GameOptions()
        options.path, options.force_recompile = str(hidden / "game.z8"), True
        compile_game(Game.load(str(path)), options)

    try:
        cached_folder(folder, build, "compiled games", folder.parent / "lock")
    except UserError:
        raise
    except Exception as error:  # not a game, or the compiler fails
        why = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise UserError(f"--env {env_name}: {path} cannot be compiled as a game of TextWorld: {why}") from error
    return folder / "game.z8"
