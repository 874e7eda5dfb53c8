"""Runs games of TextWorld and Jericho, as an `Env`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paw_fast.envs.base import BaseEnv, BaseExpert, StepResult, one_line
from paw_fast.envs.textworld_games.games import check_installed, compiled, find_games, split_games
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

MAX_COMMAND_CHARS = 200


class TextworldEnv(BaseEnv):
    """Runs one episode at a time. A task is a game file.

    The first observation is the description of the room, and the task the game's objective. The score of a step is what
    it adds to the game's score, as a share of the largest. An episode that is lost, or ends without a win, is not won.
    """

    def __init__(self, config: Any, cache_dir: Path) -> None:
        self._config, self.name, self._cache_dir = config, config.name, cache_dir
        self._root = Path(config.name.partition(":")[2]).expanduser()
        self._games = find_games(self._root, self.name)
        check_installed(self.name, self._games)
        self._loaded: tuple[Path, Any] | None = None
        self._num_steps, self._score, self._done = 0, 0.0, True

    def tasks(self, split: str) -> Sequence[Task]:
        """The games of "train" or "unseen" (also "eval"). Raises `UserError` for other splits."""
        name, games = split_games(self._games, self._root, split, self.name)
        folder = self._root if self._root.is_dir() else self._root.parent
        return tuple(Task(str(game.relative_to(folder)), self.name, name, path=game) for game in games)

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `UserError` for a file that cannot be played."""
        if task.path is None:
            raise UserError(f"the task {task.task_id!r} has no file: take one of env.tasks(...)")
        if self._loaded is None or self._loaded[0] != task.path:
            self.close()
            self._loaded = task.path, self._load(task.path)
        env = self._loaded[1]
        state = env.reset()
        self._made_by_textworld = hasattr(env, "unwrapped")  # the wrapper of games that TextWorld has made
        if not self._made_by_textworld and not env._jericho.is_fully_supported:
            raise UserError(
                f"--env {self.name}: Jericho does not know {task.path.name}, so that winning cannot be told. A game of "
                "TextWorld needs its .json beside the .z8"
            )
        self._num_steps, self._score, self._done = 0, self._score_of(state), False
        text = str(state.get("description") or state.feedback) if self._made_by_textworld else str(state.feedback)
        return self._observe(state, text, str(state.get("objective") or ""))

    def _load(self, path: Path) -> Any:
        import textworld

        file = compiled(path, self._cache_dir, self.name)
        infos = textworld.EnvInfos(
            feedback=True, description=True, inventory=True, won=True, lost=True, score=True, max_score=True,
            objective=True, admissible_commands=self._config.list_commands or file.with_suffix(".json").exists(),
            policy_commands=file.with_suffix(".json").exists(),
        )  # fmt: skip
        try:
            with warnings.catch_warnings():
                # Jericho warns of each game that is none of its own; `reset` refuses those that need it.
                warnings.simplefilter("ignore")
                return textworld.start(str(file), infos)
        except Exception as error:
            raise UserError(f"--env {self.name}: {path} cannot be loaded: {one_line(error)[:300]}") from error

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `RuntimeError` before the first reset or after `done`."""
        if self._done or self._loaded is None:
            raise RuntimeError("step without an episode: call reset first")
        state, _, ended = self._loaded[1].step(readable(command))
        self._num_steps += 1
        won = bool(state.get("won"))
        over = self._num_steps >= self._config.max_steps
        ended = bool(ended) or won or bool(state.get("lost"))
        self._done = ended or over
        score = self._score_of(state)
        gain, self._score = score - self._score, score
        return StepResult(
            self._observe(state, str(state.feedback)), self._done, won,
            reward=gain if self._config.reward == "score" else float(won), score=gain, truncated=over and not ended,
        )  # fmt: skip

    def _score_of(self, state: Any) -> float:
        return float(state.get("score") or 0) / max(1.0, float(state.get("max_score") or 1))

    def _observe(self, state: Any, text: str, task: str = "") -> Observation:
        place = f"{str(state.get('description') or '').strip()}\n{str(state.get('inventory') or '').strip()}"
        commands = tuple(state.get("admissible_commands") or ())
        notes = {"policy": tuple(state.get("policy_commands") or ())} if self._made_by_textworld else {}
        return Observation(text.strip(), commands, task, state_text=place, notes=notes)

    def spawn(self) -> TextworldEnv:
        """Creates another episode slot."""
        return TextworldEnv(self._config, self._cache_dir)

    def close(self) -> None:
        """Ends the interpreter. Safe to call twice."""
        loaded, self._loaded, self._done = self._loaded, None, True
        if loaded is not None:
            loaded[1].close()


def readable(command: str) -> str:
    """A command as interpreters can read it: of printable ASCII, and of bounded length. Others crash them.

    >>> readable("open\\n the\\x04 caf\\u00e9 ")
    'open  the  caf'
    """
    kept = "".join(one if one.isascii() and one.isprintable() else " " for one in command)
    return kept.strip()[:MAX_COMMAND_CHARS]


class PolicyExpert(BaseExpert):
    """Follows TextWorld's own winning policy, which is found anew from the state after each command. Games of Jericho
    have none."""

    noop_command: str | None = "look"

    def reset(self, observation: Observation) -> None:
        """Starts an episode. Raises `ValueError` for a game without a winning policy."""
        if not observation.notes.get("policy"):
            raise ValueError("the game has no winning policy: only games that TextWorld generated have one")

    def act(self, observation: Observation) -> str:
        """Returns the next command; `look` where the game cannot be won any more."""
        policy = observation.notes["policy"]
        return policy[0] if policy else "look"
