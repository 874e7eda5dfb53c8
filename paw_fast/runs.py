"""Run directories: what they hold, how one is begun and taken up again.

RUN/config.toml  versions.json  metrics.jsonl  tensorboard/  episodes/  warm_start/  checkpoints/  summary.json
    report.html
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from paw_fast.config import TrainConfig, load_toml, to_toml
from paw_fast.env_config import EnvConfig, data_variable
from paw_fast.files import user_errors, write_text
from paw_fast.types import Trajectory, UserError

_PACKAGES = ("paw-fast", "torch", "transformers", "tokenizers", "numpy", "vllm", "alfworld", "textworld")


def create_run(config: TrainConfig) -> Path:
    """Makes the run's folder with its config and the versions at work. Raises `UserError` if it has a run in it."""
    run_dir = config.run_dir or Path("runs") / f"{config.env.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (run_dir / "config.toml").exists():
        raise UserError(f"{run_dir} holds a run already: go on with --resume {run_dir}, or choose another --run-dir")
    with user_errors("create the run directory", run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    write_config(run_dir, config)
    write_json(run_dir / "versions.json", versions())
    return run_dir


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Writes down what the run, and a later `--resume` without options, goes by."""
    write_text(run_dir / "config.toml", to_toml(config))


def discard_unused(run_dir: Path, before: Collection[Path] | None) -> None:
    """Takes away what `create_run` wrote if a run stopped before it made anything else, so that the command, mended,
    can be given again. `before`: what was in the folder, None where there was none."""
    made = {run_dir / "config.toml", run_dir / "versions.json"}
    if set(run_dir.iterdir()) <= made | set(before or ()):
        for path in made:
            path.unlink(missing_ok=True)
        if before is None:
            run_dir.rmdir()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run_of(path: Path) -> Path:
    """The run directory that a path (the run, its checkpoints folder or one of them) belongs to."""
    for folder in (path, *path.absolute().parents[:2]):
        if (folder / "config.toml").is_file():
            return folder
    raise UserError(f"{path} is not a run directory: there is no config.toml in it")


def config_of(run_dir: Path) -> TrainConfig:
    """The config a run was started with, or went on with last.

    Raises `UserError` where a variable would now put other data in the place of what it was generated for.
    """
    config = load_toml(run_dir / "config.toml")
    if variable := data_variable(config.env):
        raise UserError(
            f'{run_dir} was made without --env.data, and {variable} is set now: unset it, or write data = "FOLDER" '
            f"below [env] in {run_dir / 'config.toml'}"
        )
    return config


def check_reference_engine(env: EnvConfig, said: bool, flag: str) -> None:
    """Raises `UserError` where a run's config, which may be somebody else's, has game files played by the reference
    engine and the command line does not say so."""
    if env.name == "alfworld" and env.engine == "textworld" and env.data is not None and not said:
        raise UserError(
            f"this run's games, in {env.data}, are played by the reference engine, which runs Python expressions of "
            f"game files: if you trust them, say {flag}"
        )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote; {} where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, json.JSONDecodeError) as e:
        raise UserError(f"cannot read {path}: {e}") from e


def write_episodes(run_dir: Path, step: int, trajectories: Sequence[Trajectory]) -> None:
    """Sampled episodes as readable text, in episodes/step_000012.txt."""
    if trajectories:
        text = "\n\n".join(episode_text(t) for t in trajectories)
        write_text(run_dir / "episodes" / f"step_{step:06d}.txt", text + "\n")


def episode_text(trajectory: Trajectory) -> str:
    """An episode as a person would read it."""
    head = (
        f"=== {trajectory.task.task_id}   {'won' if trajectory.won else 'lost'}   return {trajectory.episode_return:g}"
    )
    lines = [head, trajectory.intro_text]
    for number, t in enumerate(trajectory.transitions, 1):
        lines.append(f"[{number}] > {t.command}{'' if t.valid else '   (invalid)'}")
        lines.append(t.observation_text)
    return "\n".join(lines)
