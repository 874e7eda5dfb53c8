"""Lists ScienceWorld's tasks: kinds, each in variations that are split as the package splits them."""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence

from paw_fast.envs.scienceworld.config import ScienceWorldConfig
from paw_fast.errors import UserError
from paw_fast.types import Task

_SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "unseen": "dev", "eval": "dev", "test": "test"}


def variations_of(split: str, total: int) -> range:
    """The variations of "train", "dev" or "test": the first half, the third quarter and the rest, as of the simulator.

    >>> variations_of("train", 30), variations_of("dev", 30), variations_of("test", 30)
    (range(0, 14), range(14, 21), range(21, 30))
    """
    quarter = total // 4
    return {
        "train": range(2 * quarter),
        "dev": range(2 * quarter, 3 * quarter),
        "test": range(3 * quarter, total),
    }[split]


def check_names(config: ScienceWorldConfig, known: Sequence[str], simplifications: Sequence[str]) -> None:
    """Raises `UserError` for kinds of tasks and simplifications that the simulator does not have."""
    for option, given, possible in (
        ("task-names", config.task_names, known), ("simplifications", config.simplifications, simplifications),
    ):  # fmt: skip
        for name in given:
            if name not in possible:
                near = difflib.get_close_matches(name, possible, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}? There are" if near else "there are"
                raise UserError(f"--env.{option} {name}: scienceworld has none; {hint} {', '.join(possible)}")
    electric = [name for name in config.task_names or known if "power-component" in name or "conductivity" in name]
    if electric and config.task_names and "noElectricalAction" in config.simplifications:
        raise UserError(f"--env.simplifications noElectricalAction makes {electric[0]} impossible: leave one out")


def list_tasks(config: ScienceWorldConfig, totals: Mapping[str, int], split: str) -> tuple[Task, ...]:
    """The tasks of "train", "dev" (also "unseen", "eval") or "test", in an order in which the kinds take turns.

    totals: number of variations of each kind. Raises `UserError` for other splits.
    """
    name = _SPLITS.get(split)
    if name is None:
        raise UserError(f"scienceworld has no split {split!r}: there are train, dev (also called unseen) and test")
    columns = []
    for kind in config.task_names or tuple(totals):
        if not config.task_names and "noElectricalAction" in config.simplifications and _is_electric(kind):
            continue
        numbers = list(variations_of(name, totals[kind]))
        if config.max_variations:
            drawn = random.Random(f"{config.game_seed} {kind} {name}").sample(numbers, len(numbers))
            numbers = sorted(drawn[: config.max_variations])
        columns.append([_task(kind, number, name) for number in numbers])
    longest = max(map(len, columns))
    return tuple(column[row] for row in range(longest) for column in columns if row < len(column))


def _is_electric(kind: str) -> bool:
    return "power-component" in kind or "conductivity" in kind


def _task(kind: str, variation: int, split: str) -> Task:
    info = {"task": kind, "variation": variation}
    return Task(f"{kind}/{variation}", "scienceworld", split, kind, info=info, key=f"{kind}/{variation}")
