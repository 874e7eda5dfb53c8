"""Says which settings a run may change when it is resumed, and what was changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

from paw_fast.config.schema import TrainConfig
from paw_fast.errors import UserError

MAY_CHANGE: dict[str, bool] = {
    # How long, how often, where.
    "steps": True, "save_every": True, "eval_every": True, "keep_checkpoints": True, "keep_best": True,
    "episodes_to_write": True, "push_to_hub": True, "push_private": True,
    "log": True, "profile": True, "token_budget": True, "logits_budget_mb": True, "check_memory": True,
    "model.device": True, "model.gradient_checkpointing": True, "warm_start.cache": True,
    "offload.*": True,
    # Evaluations before and after must be of one kind.
    "rollout.eval_temperature": False,
    "rollout.*": True, "pipeline.*": True,
    "env.time_limit_s": True, "env.processes": True, "env.max_retries": True,
    # Coefficients are read at every update, and optimizer settings are put over the restored ones.
    "algo.name": False, "algo.*": True, "critic.backbone": False, "critic.*": True, "paw.*": True, "optim.*": True,
    # Everything else makes another run of it: the model, the tasks, the seed, the layout, the warm start.
    "*": False,
}  # fmt: skip
"""Settings by their names in config.toml (`*` stands for any), and whether they may differ on resuming. The first
pattern that fits decides. Fields of the environment are added by its `CHANGEABLE_ON_RESUME`."""


def may_change(name: str, of_env: Collection[str] = ()) -> bool:
    """
    >>> may_change("optim.learning_rate"), may_change("seed"), may_change("env.retriever", ("retriever",))
    (True, False, True)
    """
    if name.startswith("env.") and name.removeprefix("env.") in of_env:
        return True
    return next(allowed for pattern, allowed in MAY_CHANGE.items() if fnmatchcase(name, pattern))


def differences(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, value before, value now) of every setting that differs."""
    found = []
    for f in dataclasses.fields(before):
        a, b, name = getattr(before, f.name), getattr(now, f.name, None), prefix + f.name
        if dataclasses.is_dataclass(a):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append((name, a, b))
    return found


def changes_on_resume(run_dir: Any, begun: TrainConfig, now: TrainConfig) -> list[str]:
    """What is changed, a setting each as `--optim.learning-rate 0.001 -> 0.01`.

    Raises `UserError` naming both values where the change would make another run of it.
    """
    changed = differences(begun, now)
    for name, before, after in changed:
        if not may_change(name, begun.env.CHANGEABLE_ON_RESUME):
            raise UserError(
                f"--{flag(name)} {after}: {run_dir} was begun with {before}, and another value makes another run; "
                "leave it out, or begin a new run without --resume"
            )
    return [f"--{flag(name)} {before} -> {after}" for name, before, after in changed]


_FLAGS = {"model.path": "model", "env.name": "env", "algo.name": "algo", "pipeline.name": "pipeline"}


def flag(name: str) -> str:
    """The command-line spelling of a setting, without the dashes before it.

    >>> flag("algo.name"), flag("optim.learning_rate")
    ('algo', 'optim.learning-rate')
    """
    return _FLAGS.get(name, name).replace("_", "-")
