"""Run directories: what they hold, how one is begun and taken up again.

RUN/config.toml  versions.json  metrics.jsonl  tensorboard/  episodes/  warm_start/  checkpoints/  summary.json
    report.html  .lock  skipped_batch.jsonl
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from paw_fast.config import EnvConfig, TrainConfig, data_variable, load_toml, to_toml
from paw_fast.errors import UserError
from paw_fast.runs import console
from paw_fast.runs.atomic_files import is_at, user_errors, write_text
from paw_fast.types import Trajectory

_PACKAGES = ("paw-fast", "torch", "transformers", "tokenizers", "numpy", "vllm", "alfworld", "textworld")


LOCK = ".lock"
_locks: dict[Path, int] = {}
"""The run directories that this process holds, with the descriptors of their lock files."""


def create_run(config: TrainConfig) -> Path:
    """Makes the run's folder with its config and the versions at work, and holds it (`hold`).

    Raises `UserError` if it has a run in it. Without `config.run_dir` the folder is a new one, whoever else begins a
    run in the same second.
    """
    run_dir = config.run_dir
    if run_dir is None:
        run_dir = _new_folder(Path("runs") / f"{config.env.name.replace(':', '.')}-{time.strftime('%Y%m%d-%H%M%S')}")
    with user_errors("create the run directory", run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    hold(run_dir)
    if (run_dir / "config.toml").exists():
        release(run_dir)
        raise UserError(f"{run_dir} holds a run already: go on with --resume {run_dir}, or choose another --run-dir")
    write_config(run_dir, config)
    write_json(run_dir / "versions.json", versions())
    return run_dir


def _new_folder(wanted: Path) -> Path:
    """Makes the folder, or `wanted-2`, `wanted-3`, ... where there is one: checking first would let two make one."""
    with user_errors("create the run directory", wanted):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    raise UserError(f"{wanted} and 998 folders after it exist already: name one with --run-dir")


def hold(run_dir: Path) -> None:
    """Locks the run for this process, until `release` or the process's end. Evaluations and reports need no lock.

    Raises `UserError` naming the process that holds it. Where the file system knows no locks it says so and goes on.
    """
    path = run_dir.absolute() / LOCK
    held = _locks.get(run_dir.absolute())
    if held is not None and is_at(held, path):
        return
    release(run_dir)
    with user_errors("lock the run directory", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                os.close(handle)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise UserError(
                        f"{run_dir} is in use by {holder or 'another process'}: wait for its end or stop it, then "
                        f"go on with --resume {run_dir}"
                    ) from None
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                    raise
                console.say(f"{run_dir}: its file system has no locks; see that no other process trains in it")
                return
            if is_at(handle, path):
                break
            os.close(handle)  # its holder has taken the file away in between
        os.ftruncate(handle, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    _locks[run_dir.absolute()] = handle


def release(run_dir: Path) -> None:
    """Gives up what `hold` took. Does nothing where nothing is held."""
    handle = _locks.pop(run_dir.absolute(), None)
    if handle is not None:
        os.close(handle)


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Writes down what the run, and a later `--resume` without options, goes by."""
    write_text(run_dir / "config.toml", to_toml(config))


def discard_unused(run_dir: Path, before: Collection[Path] | None) -> None:
    """Takes away what `create_run` wrote if a run stopped before it made anything else, so that the command, mended,
    can be given again. `before`: what was in the folder, None where there was none. The run must be held."""
    made = {run_dir / "config.toml", run_dir / "versions.json", run_dir / LOCK}
    if run_dir.is_dir() and set(run_dir.iterdir()) <= made | set(before or ()):
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


def check_consent(env: EnvConfig, given: bool, option: str) -> None:
    """Raises `UserError` where a run's config, which may be somebody else's, has code from data files run and the
    command line does not allow it. `option` is what would allow it."""
    if (code := env.code_in_data()) and not given:
        raise UserError(f"{code}: if you trust them, add {option}")


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


def write_batch(run_dir: Path, trajectories: Sequence[Trajectory], logprobs: Sequence[Any]) -> Path:
    """A step's episodes with all that was learned from them, in skipped_batch.jsonl: one JSON object an episode.

    logprobs: an array for each transition, those of its action tokens in the trainer. NaN and Infinity stand as
    Python's json writes them.
    """
    path, lines, number = run_dir / "skipped_batch.jsonl", [], 0
    for trajectory in trajectories:
        turns = []
        for t in trajectory.transitions:
            turns.append(
                {
                    "prompt_ids": list(t.prompt_ids), "action_ids": list(t.action_ids),
                    "observation_ids": list(t.observation_ids), "rollout_logprobs": list(t.rollout_logprobs),
                    "old_logprobs": [float(one) for one in logprobs[number]], "reward": float(t.reward),
                    "command": t.command, "observation": t.observation_text,
                }
            )  # fmt: skip
            number += 1
        about = {"task": trajectory.task.task_id, "group": trajectory.group, "return": trajectory.episode_return}
        lines.append(json.dumps({**about, "transitions": turns}) + "\n")
    write_text(path, "".join(lines))
    return path


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
