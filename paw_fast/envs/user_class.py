"""Creates the spec of an environment from a class in a user's file or package."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paw_fast.config.schema import EnvConfig
from paw_fast.envs.base import BaseEnv, BaseExpert, Env, EnvSpec, Expert, StepResult
from paw_fast.errors import UserError
from paw_fast.types import Observation, Task

CHECKED_TASKS = 100
"""Number of training tasks that are checked before a run begins."""


def as_spec(found: Any, name: str) -> EnvSpec:
    """Returns `found` if it is an `EnvSpec`, else the spec of a class with `tasks`, `reset` and `step`.

    Optional attributes of the class: `Config` (a subclass of `EnvConfig`, passed to the class), `Expert` (a class with
    `reset` and `act`), `templates` (a folder), and `data_variable`, `play`, `has_state_text` and `check_installed` as
    in `EnvSpec`. Members of `Env` and `Expert` that the class does not have are taken from `BaseEnv` and `BaseExpert`.
    Raises `UserError`, saying what is missing, if `found` is not an environment.
    """
    if isinstance(found, EnvSpec):
        return found
    if not inspect.isclass(found):
        raise UserError(f"--env {name}: it is {type(found).__name__}, expected an EnvSpec or a class")
    config = getattr(found, "Config", EnvConfig)
    if not (inspect.isclass(config) and issubclass(config, EnvConfig)):
        raise UserError(f"--env {name}: its Config is not a frozen dataclass that inherits paw_fast's EnvConfig")
    env_class = _complete(found, name, BaseEnv, {"tasks": Sequence, "reset": Observation, "step": StepResult})
    expert = getattr(found, "Expert", None)
    expert_class = None if expert is None else _complete(expert, name, BaseExpert, {"reset": None, "act": str})

    def make(config: EnvConfig) -> Env:
        env = _construct(env_class, config)
        _check_tasks(env.tasks("train")[:CHECKED_TASKS], name)
        env.name = name
        env._remake = lambda: make(config)
        return env

    def make_expert(config: EnvConfig, seed: int = 0, careful: bool = False) -> Expert:
        assert expert_class is not None
        return _construct(expert_class, config, seed=seed, careful=careful)

    templates = getattr(found, "templates", None)
    return EnvSpec(
        name=name,
        config=config,
        make=make,
        make_expert=None if expert_class is None else make_expert,
        data_variable=getattr(found, "data_variable", ""),
        templates=None if templates is None else Path(templates),
        play=getattr(found, "play", {}),
        check_installed=getattr(found, "check_installed", None),
        has_state_text=getattr(found, "has_state_text", True),
        task_content=getattr(found, "task_content", None),
        is_retrieval=getattr(found, "is_retrieval", False),
    )


def _complete(found: type, name: str, base: type, needed: Mapping[str, Any]) -> Any:
    """Returns a subclass of a user's class with the missing members from `base`. It checks the types that the methods
    in `needed` return (None: any type)."""
    inherited = [method for method in needed if getattr(found, method, None) is getattr(base, method, base)]
    missing = [method for method in needed if not callable(getattr(found, method, None)) or method in inherited]
    if missing:
        raise UserError(f"--env {name}: {found.__name__} lacks the method {' and '.join(missing)}; see {base.__name__}")

    def checked(method: str, expected: type) -> Callable[..., Any]:
        function = getattr(found, method)

        def call(self: Any, argument: Any) -> Any:
            result = function(self, argument)
            if not isinstance(result, expected):
                got, wanted = type(result).__name__, expected.__name__
                raise UserError(f"--env {name}: {found.__name__}.{method} returned {got}, expected {wanted}")
            return result

        return call

    checks = {method: checked(method, expected) for method, expected in needed.items() if expected is not None}
    bases = (found,) if issubclass(found, base) else (found, base)
    return type(found.__name__, bases, {"__module__": found.__module__, **checks})


def _check_tasks(tasks: Sequence[Any], name: str) -> None:
    for task in tasks:
        if not isinstance(task, Task):
            raise UserError(f"--env {name}: tasks returned {type(task).__name__}, expected Tasks")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", task.task_type):
            raise UserError(
                f"--env {name}: the task {task.task_id} has the type {task.task_type!r}: metrics are named by it, so "
                "only letters, digits, _ and - are possible"
            )


def _construct(cls: Any, config: EnvConfig, **more: Any) -> Any:
    """Creates an object of a user's class, whose constructor may take the config and any of `more`."""
    parameters = inspect.signature(cls).parameters
    named = {key: value for key, value in more.items() if key in parameters}
    takes_config = any(key not in named for key in parameters)
    return cls(config, **named) if takes_config else cls(**named)
