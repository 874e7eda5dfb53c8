"""Reads, writes and checks panels: named lists of tasks, with a hash of what each task contains.

Two evaluations are of the same tasks if the hashes of their panels are equal, whatever machine they ran on.

    {"panel": "mine", "format": 1, "env": "alfworld", "split": "unseen", "generator": "...",
     "settings": {"max_steps": 14, ...}, "tasks": [{"id": "...", "type": "...", "hash": "..."}, ...], "hash": "..."}

The hash covers environment, split, settings, and id, type and hash of every task in their order. It does not cover the
name, and not the generator, whose version only explains differences.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from paw_fast import envs
from paw_fast.config import EnvConfig, data_variable, from_mapping
from paw_fast.envs.base import Env
from paw_fast.errors import UserError
from paw_fast.runs import progress, stop_signals
from paw_fast.types import Task

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMON_FIELDS = {field.name for field in dataclasses.fields(EnvConfig)} - {"max_steps"}
"""Settings of all environments that are the run's own and no part of a panel: of the prompts, of the machine."""
_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class PanelTask:
    """A task of a panel: its id and type in the environment, and the hash of what it contains.

    >>> PanelTask("unseen-3", "one_hop", "9f2c").type
    'one_hop'
    """

    id: str
    type: str
    hash: str


@dataclass(frozen=True)
class Panel:
    """A named list of tasks. Produced by `make_panel` and `read_panel`, consumed by `find_tasks`.

    settings   the environment's settings that belong to the tasks, by name
    generator  version of what generated the tasks; empty for tasks from files

    >>> panel = Panel("mine", "search", "unseen", {"max_steps": 5}, "", (PanelTask("1", "one_hop", "9f2c"),))
    >>> panel.hash == dataclasses.replace(panel, name="yours").hash
    True
    """

    name: str
    env: str
    split: str
    settings: Mapping[str, Any]
    generator: str
    tasks: tuple[PanelTask, ...]

    @property
    def hash(self) -> str:
        """Hex digest of environment, split, settings and tasks."""
        rows = [[task.id, task.type, task.hash] for task in self.tasks]
        return digest(_canonical([FORMAT, self.env, self.split, dict(self.settings), rows]))

    def to_json(self) -> str:
        """The content of the panel's file, a task a line."""
        head = {
            "panel": self.name, "format": FORMAT, "env": self.env, "split": self.split, "generator": self.generator,
            "settings": dict(self.settings), "hash": self.hash,
        }  # fmt: skip
        rows = ",\n".join("  " + json.dumps(dataclasses.asdict(task), ensure_ascii=False) for task in self.tasks)
        return f'{json.dumps(head, indent=1, ensure_ascii=False)[:-2]},\n "tasks": [\n{rows}\n ]\n}}\n'


def digest(text: str) -> str:
    """The first 32 hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


# ------------------------------------------------------------------------------------------------------- making


def task_hash(env: Env, task: Task, content: Callable[[Any, Task], str] | None = None) -> str:
    """Hash of what a task contains: of `content(env, task)` (`EnvSpec.task_content`); without that, of the task's key,
    else of the bytes of its file, else of its `info` and first observation. Raises `UserError` for an unreadable file.
    """
    if content is not None:
        return digest(content(env, task))
    if task.key:
        return digest(f"key {task.key}")
    if task.path is not None:
        try:
            return hashlib.sha256(task.path.read_bytes()).hexdigest()[:32]
        except OSError as error:
            raise UserError(f"cannot read {task.path}: {error.strerror}") from None
    first = env.reset(task)
    return digest(_canonical([{k: repr(v) for k, v in task.info.items()}, first.text, first.task]))


def panel_settings(config: EnvConfig) -> dict[str, Any]:
    """The settings of an environment that belong to its tasks: all but those of the prompts, of the machine, of the
    expert, and those that say where data is."""
    hints = typing.get_type_hints(type(config))
    left_out = {*_COMMON_FIELDS, *config.CHANGEABLE_ON_RESUME, *config.CONSENT_FIELDS, *config.FILE_FIELDS}
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_path = hints[field.name] is Path or Path in typing.get_args(hints[field.name])
        if field.name not in left_out and not is_path and not dataclasses.is_dataclass(value):
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def check_name(name: str) -> None:
    """Raises `UserError` for a panel's name that is no name of a file."""
    if not _NAME.fullmatch(name):
        raise UserError(f"the panel's name is {name!r}, expected letters, digits, '.', '_' and '-'")


def make_panel(name: str, config: EnvConfig, env: Env, split: str, tasks: Sequence[Task]) -> Panel:
    """A panel of tasks of a split. Raises `UserError` for a name that no file can have, and for ids that occur twice
    with different contents."""
    check_name(name)
    generator = envs.find(config.name).generator
    rows = _hashed(env, config.name, tasks)
    by_id: dict[tuple[str, str], str] = {}
    for row in rows:
        if by_id.setdefault((row.id, row.type), row.hash) != row.hash:
            raise UserError(f"two tasks of the split {split} have the id {row.id!r}: ids must be unique in a panel")
    version = "" if generator is None else generator(config)
    return Panel(name, config.name, split, panel_settings(config), version, tuple(rows))


def _hashed(env: Env, name: str, tasks: Sequence[Task]) -> list[PanelTask]:
    """name: of the environment for `--env`, by which its spec is found."""
    content, rows = envs.find(name).task_content, []
    with progress.phase("reading tasks", len(tasks), "tasks") as advance:
        for task in tasks:
            stop_signals.check()
            rows.append(PanelTask(task.task_id, task.task_type, task_hash(env, task, content)))
            advance()
    return rows


# ------------------------------------------------------------------------------------------------------ reading


def shipped_panels() -> dict[str, Path]:
    """The panels that come with the package, by name."""
    folder = resources.files("paw_fast.evaluation") / "panels"
    return {Path(str(f)).stem: Path(str(f)) for f in sorted(folder.iterdir(), key=str) if str(f).endswith(".json")}


def read_panel(given: str | Path) -> Panel:
    """Reads a panel's file, or one that comes with the package by its name.

    Raises `UserError` for a file that cannot be read, is no panel, or was edited: its hash must be that of its content.
    """
    known = shipped_panels()
    path = known.get(str(given), Path(given)) if not Path(given).exists() else Path(given)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file: give a panel, or one of {', '.join(known)}")
        with path.open("rb") as file:
            data = json.loads(file.read(_MAX_BYTES).decode("utf-8-sig"))
    except OSError as error:
        names = f"; with the package come {', '.join(known)}" if known else ""
        raise UserError(f"cannot read the panel {path}: {error.strerror}{names}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a panel: no JSON ({str(error)[:80]})") from None
    panel = _from_json(data, path)
    if panel.hash != data["hash"]:
        raise UserError(
            f"{path} was edited: its tasks have the hash {panel.hash}, it says {data['hash']}; make another panel with "
            "paw-fast panel create"
        )
    return panel


def _from_json(data: Any, path: Path) -> Panel:
    if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} has the format {data['format']!r}, this version reads {FORMAT}")
    try:
        texts = [data[key] for key in ("panel", "env", "split", "generator", "hash")]
        rows = [(task["id"], task["type"], task["hash"]) for task in data["tasks"]]
        settings = dict(data["settings"])
        if not rows or not all(isinstance(one, str) for one in (*texts, *settings, *(v for row in rows for v in row))):
            raise TypeError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is not a panel: write one with paw-fast panel create") from None
    tasks = tuple(PanelTask(*row) for row in rows)
    return Panel(data["panel"], data["env"], data["split"], settings, data["generator"], tasks)


# ----------------------------------------------------------------------------------------------------- checking


@dataclass(frozen=True)
class Difference:
    """A task of a panel that is not as listed. Produced by `compare`."""

    task: PanelTask
    why: str


def with_panel(config: EnvConfig, panel: Panel) -> EnvConfig:
    """The settings of an environment with those of a panel. Raises `UserError` for another environment."""
    if panel.env != config.name:
        raise UserError(f"the panel {panel.name} is of --env {panel.env}, the settings are of {config.name}")
    values = {key: "none" if value is None else value for key, value in panel.settings.items()}
    return from_mapping(type(config), values, config, f"panel {panel.name}")


def changed_settings(before: EnvConfig, after: EnvConfig, panel: Panel) -> list[str]:
    """Settings of a panel that a command line changed from `before` to a value other than the panel's."""
    now, own = panel_settings(after), panel_settings(before)
    return [key for key, value in panel.settings.items() if now.get(key) != own.get(key) and now.get(key) != value]


def compare(panel: Panel, env: Env) -> tuple[list[Task], list[Difference]]:
    """The environment's tasks of a panel, in its order, and those that are missing or contain something else."""
    wanted = {(task.id, task.type) for task in panel.tasks}
    found: dict[tuple[str, str], Task] = {}
    for task in env.tasks(panel.split):
        key = (task.task_id, task.task_type)
        if key in wanted:
            found.setdefault(key, task)
            if len(found) == len(wanted):
                break
    present = [one for one in panel.tasks if (one.id, one.type) in found]
    rows = dict(zip(present, _hashed(env, panel.env, [found[one.id, one.type] for one in present]), strict=True))
    differences = []
    for one in panel.tasks:
        if one not in rows:
            differences.append(Difference(one, "is not there"))
        elif rows[one].hash != one.hash:
            differences.append(Difference(one, f"has the hash {rows[one].hash}, listed is {one.hash}"))
    return [found[one.id, one.type] for one in present], differences


def describe_differences(panel: Panel, config: EnvConfig, differences: Sequence[Difference]) -> str:
    """One line: how many tasks differ, the first of them, and what may be the reason."""
    first = differences[0]
    text = (
        f"{len(differences)} of the {len(panel.tasks)} tasks of the panel {panel.name} differ here: "
        f"{first.task.id} {first.why}"
    )
    generator = envs.find(config.name).generator
    version = "" if generator is None else generator(config)
    if version != panel.generator:
        text += f"; its tasks come from {panel.generator or 'files'}, those here from {version or 'files'}"
    if variable := data_variable(config):
        text += f"; the data here is that of {variable}"
    return text


def find_tasks(panel: Panel, config: EnvConfig, env: Env) -> list[Task]:
    """The tasks of a panel. Raises `UserError` naming the first that is missing or contains something else."""
    tasks, differences = compare(panel, env)
    if differences:
        raise UserError(f"{describe_differences(panel, config, differences)} (paw-fast panel verify lists all)")
    return tasks
