"""Runs episodes of a gymnasium environment whose observations are text, as an `Env`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paw_fast.envs.base import BaseEnv, StepResult, one_line
from paw_fast.envs.seed_splits import seeds_of
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

_TEXT_KEYS, _TASK_KEYS = ("text", "observation", "obs"), ("mission", "task", "instruction", "goal")
HOW_TO_WRAP = (
    "register it in a wrapper (gymnasium.ObservationWrapper, gymnasium.ActionWrapper) with such a space, and give "
    "--env gymnasium:MODULE:ID"
)


@dataclass(frozen=True)
class Wrapped:
    """A gymnasium environment, and how its observations and actions become text. `commands`: those of a `Discrete`
    space, empty where the action is the text itself."""

    env: Any
    read: Callable[[Any], str]
    commands: tuple[str, ...]
    start: int = 0


def make_wrapped(config: Any) -> Wrapped:
    """Creates the environment and checks its spaces. Raises `UserError` naming what is not supported."""
    import gymnasium
    from gymnasium import spaces

    environment_id = config.name.partition(":")[2]
    try:
        env = gymnasium.make(environment_id, disable_env_checker=True)
    except Exception as error:  # an environment of others can fail in any way
        raise UserError(f"--env {config.name}: gymnasium cannot make it: {one_line(error)}") from error
    key = _text_key(config, env.observation_space)
    space = env.action_space
    if isinstance(space, spaces.Text):
        if config.actions:
            raise UserError(f"--env.actions: the actions of --env {config.name} are texts already, expected no names")
        return Wrapped(env, _reader(key), ())
    if not isinstance(space, spaces.Discrete):
        raise UserError(f"--env {config.name}: its actions are {space}, expected Discrete or Text: {HOW_TO_WRAP}")
    names = config.actions or _names(env.unwrapped)
    if len(set(names)) != int(space.n) or len(names) != int(space.n):
        said = f"are {len(names)} names, {len(set(names))} of them different" if names else "have no names"
        raise UserError(
            f"--env {config.name}: its {int(space.n)} actions {said}; give --env.actions one command for each"
        )
    return Wrapped(env, _reader(key), tuple(map(str, names)), int(space.start))


def _is_text(space: Any) -> bool:
    from gymnasium import spaces

    return isinstance(space, spaces.Text)


def _text_key(config: Any, space: Any) -> str:
    """The key of the text in a `Dict` observation; "" where the observation is the text. Raises `UserError`."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        texts = [key for key, inner in space.spaces.items() if _is_text(inner)]
        if config.observation_key:
            if config.observation_key not in texts:
                raise UserError(
                    f"--env.observation-key {config.observation_key}: no text of that name; there are {texts}"
                )
            return config.observation_key
        candidates = [key for key in texts if key not in _TASK_KEYS] or texts
        chosen = candidates if len(candidates) == 1 else [key for key in _TEXT_KEYS if key in texts][:1]
        if chosen:
            return chosen[0]
        if texts:
            raise UserError(f"--env {config.name}: its observations hold the texts {texts}: say --env.observation-key")
    elif _is_text(space):
        return ""
    babyai = " (BabyAI levels: --env babyai)" if "BabyAI" in config.name else ""
    raise UserError(
        f"--env {config.name}: its observations are {' '.join(str(space).split())[:200]}, expected Text or a Dict with "
        f"a Text{babyai}: {HOW_TO_WRAP}"
    )


def _reader(key: str) -> Callable[[Any], str]:
    return lambda seen: str(seen[key] if key else seen)


def _names(env: Any) -> tuple[str, ...]:
    given = getattr(env, "action_names", None)
    if given is None and callable(getattr(env, "get_action_meanings", None)):
        given = env.get_action_meanings()
    return tuple(map(str, given or ()))


class GymnasiumEnv(BaseEnv):
    """Runs one episode at a time. A task is a seed of `reset`.

    An episode is won if `info["is_success"]` or `info["success"]` says so at its end; an environment that gives neither
    is won when it terminates with a positive last reward. Its own rewards are the scores. An action that
    `info["action_mask"]` rules out is not admissible; with a Text action space no command is listed, and all are
    accepted.
    """

    def __init__(self, config: Any) -> None:
        self._config, self.name = config, config.name
        self._wrapped = make_wrapped(config)
        self._num_steps, self._done = 0, True

    @property
    def disjoint_splits(self) -> bool:
        """True: the seeds of the splits differ. Whether equal episodes come from them, the environment decides."""
        return True

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of "train" or "unseen" (also "eval"). Raises `UserError` for other splits."""
        name, seeds = seeds_of(self._config, split, self.name)
        return tuple(Task(f"{name}-{i}", self.name, name, info={"seed": seed}) for i, seed in enumerate(seeds))

    def reset(self, task: Task) -> Observation:
        """Starts an episode. Raises `UserError` where the environment fails."""
        if not isinstance(task.info.get("seed"), int):
            raise UserError(f"the task {task.task_id!r} has no seed: take one of env.tasks(...)")
        self._seen = self._call("reset", lambda: self._begin(task.info["seed"]))
        self._num_steps, self._done = 0, False
        return self._seen

    def _begin(self, seed: int) -> Observation:
        seen, info = self._wrapped.env.reset(seed=seed)
        goal = next((str(seen[key]) for key in _TASK_KEYS if isinstance(seen, dict) and key in seen), "")
        return self._observe(seen, info, goal)

    def step(self, command: str) -> StepResult:
        """Executes one command. Raises `RuntimeError` before the first reset or after `done`."""
        if self._done:
            raise RuntimeError("step without an episode: call reset first")
        wrapped, self._num_steps = self._wrapped, self._num_steps + 1
        over = self._num_steps >= self._config.max_steps
        if wrapped.commands and command not in wrapped.commands:
            self._done = over
            return StepResult(self._seen, over, truncated=over, admissible=False)
        action: Any = wrapped.start + wrapped.commands.index(command) if wrapped.commands else command
        result = self._call("step", lambda: self._act(action, over))
        self._seen, self._done = result.observation, result.done
        return result

    def _act(self, action: Any, over: bool) -> StepResult:
        seen, reward, ended, cut, info = self._wrapped.env.step(action)
        success = info.get("is_success", info.get("success"))
        won = bool(success if success is not None else ended and reward > 0) and bool(ended or cut)
        done = bool(ended or cut or over)
        return StepResult(
            self._observe(seen, info), done, won, score=float(reward), truncated=done and not ended and not won,
            admissible=None if self._wrapped.commands else True,
        )  # fmt: skip

    def _observe(self, seen: Any, info: dict[str, Any], task: str = "") -> Observation:
        commands, mask = self._wrapped.commands, info.get("action_mask")
        if commands and mask is not None:
            if len(mask) != len(commands):
                raise ValueError(f"info['action_mask'] has {len(mask)} values for {len(commands)} actions")
            commands = tuple(name for name, works in zip(commands, mask, strict=True) if works)
        return Observation(self._wrapped.read(seen), commands, task)

    def _call(self, what: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # an environment of others can fail in any way
            raise UserError(
                f"--env {self.name}: its {what} failed: {type(error).__name__}: {one_line(error)}"
            ) from error

    def spawn(self) -> GymnasiumEnv:
        """Creates another episode slot."""
        return GymnasiumEnv(self._config)

    def close(self) -> None:
        """Closes the environment. Safe to call twice."""
        self._wrapped.env.close()
        self._done = True
