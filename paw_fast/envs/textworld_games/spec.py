"""Creates the `EnvSpec` of a game file or a folder of games."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from paw_fast.config.ranges import SECONDS, Range
from paw_fast.config.schema import EnvConfig, EnvName
from paw_fast.envs.base import EnvSpec
from paw_fast.envs.textworld_games.env import PolicyExpert, TextworldEnv
from paw_fast.envs.textworld_games.games import check_installed, find_games
from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import cache_folder

KIND = "textworld"


@dataclass(frozen=True)
class TextworldConfig(EnvConfig):
    """Games of TextWorld and Jericho in files."""

    name: EnvName = KIND
    """The environment: `textworld:FILE` or `textworld:FOLDER`."""
    max_steps: Annotated[int, Range(1, 1 << 16)] = 50
    """An episode ends after this many actions."""
    time_limit_s: Annotated[float | None, SECONDS] = 60.0
    """Seconds that a reset or a step may take. The interpreter, which is C code, runs in processes of its own: one that
    exceeds the limit, or ends, is restarted, and its episodes are played again. `None`: no limit, and no other
    process."""
    reward: Literal["success", "score"] = "success"
    """Reward of an action: 1 for winning and else 0, or what the action adds to the game's score as a share of the
    largest score."""
    list_commands: bool = False
    """Also list the commands that work in games of Jericho, which takes up to seconds for each observation; games of
    TextWorld always list them."""

    MAIN_FIELDS: ClassVar[tuple[str, ...]] = ("reward",)

    def with_full_paths(self) -> TextworldConfig:
        """The same with absolute paths, that of the games included."""
        path = Path(self.name.partition(":")[2]).expanduser().absolute()
        full: Any = replace(super().with_full_paths(), name=f"{KIND}:{path}")
        return full


def make(config: TextworldConfig, cache_dir: Path | None = None) -> TextworldEnv:
    """Creates an environment in this process. `cache_dir`: for games that are compiled. Raises `UserError`."""
    return TextworldEnv(config, cache_dir or default_cache_dir())


def default_cache_dir() -> Path:
    """The folder of the cache."""
    return cache_folder()


def check(config: TextworldConfig) -> None:
    """Raises `UserError` if the package or the games are missing."""
    check_installed(config.name, find_games(Path(config.name.partition(":")[2]).expanduser(), config.name))


def spec_of(path: str) -> EnvSpec:
    """Returns the spec of `--env textworld:FILE`. The files are read when a run begins."""
    if not path:
        raise UserError("--env textworld: gives no file, expected textworld:FILE or textworld:FOLDER")
    return EnvSpec(
        name=f"{KIND}:{path}",
        config=TextworldConfig,
        make=make,
        make_expert=lambda config, seed=0, careful=False: PolicyExpert(),
        check_installed=check,
        caveats=("games of Jericho have no expert (no --model tiny), and list commands only with --env.list-commands",),
    )
