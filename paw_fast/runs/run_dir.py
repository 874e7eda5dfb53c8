"""Creates, locks and reads run directories.

RUN/config.toml           settings of the run; `--resume` without options uses them
RUN/begun.toml            the settings that the run began with; a resume compares them with config.toml
RUN/versions.json         versions of the packages that affect the results, and each start: command, commit, machine
RUN/example_prompt.json   the first message to the policy in a training task, and the texts that end an action
RUN/hub.json              the last upload to the Hugging Face Hub (see `hub`)
RUN/metrics.jsonl         one row of metrics per step (see `metrics`), also as events in tensorboard/
RUN/tasks.jsonl           the tasks of each training step, see `task_record`
RUN/episodes/             sampled episodes as text
RUN/warm_start/           the model after the warm start
RUN/checkpoints/          see `checkpoint`
RUN/summary.json          final results, shown in report.html
RUN/skipped_batch.jsonl   the last batch, if training stopped because no gradient was finite
RUN/.lock                 held by the process that trains the run
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paw_fast.config import EnvConfig, TrainConfig, data_variable, load_toml, read_toml, to_toml
from paw_fast.errors import UserError
from paw_fast.runs import console
from paw_fast.runs.atomic_files import is_at, user_errors, write_text
from paw_fast.runs.secrets import mask_credentials
from paw_fast.runs.task_record import write_tasks
from paw_fast.runs.versions import with_start
from paw_fast.types import Trajectory

NEEDED_KEYS = ("seed", "steps", "layout", "env.name", "model.path", "algo.name", "rollout.groups", "rollout.group_size")
"""Keys that the config.toml of a run has in every version. A file without one of them was damaged or edited."""

BEGUN, VERSIONS, LOCK, PROMPT = "begun.toml", "versions.json", ".lock", "example_prompt.json"
_locks: dict[Path, int] = {}
"""Run directories locked by this process, with the descriptors of their lock files."""


def create_run(config: TrainConfig) -> Path:
    """Creates the folder of a run, locks it (see `lock`), writes its first files, and returns its path.

    Without `config.run_dir` a new folder below `runs/` is created (see `run_name`); processes that start at the same
    time get different folders. Raises `UserError` if the folder already contains a run.
    """
    run_dir = config.run_dir
    if run_dir is None:
        run_dir = _new_folder(Path("runs") / run_name(config, time.localtime()))
    with user_errors("create the run directory", run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        is_new = (run_dir / LOCK).exists() or not (run_dir / "config.toml").exists()
    if is_new:
        lock(run_dir)
    if (run_dir / "config.toml").exists():
        unlock(run_dir)
        raise UserError(f"{run_dir} already contains a run: resume it with --resume or choose another --run-dir")
    write_config(run_dir, config)
    write_text(run_dir / BEGUN, (run_dir / "config.toml").read_text(encoding="utf-8"))
    write_json(run_dir / VERSIONS, with_start({}))
    return run_dir


def run_name(config: TrainConfig, now: time.struct_time) -> str:
    """Returns the name of a new run: environment, algorithm, world-model loss or not, seed, date and time.

    >>> run_name(TrainConfig(seed=1), time.gmtime(0))
    'alfworld-grpo-paw-s1-19700101-000000'
    """
    parts = [config.env.name, config.algo.name, "paw" if config.paw.enabled else "rl", f"s{config.seed}"]
    return re.sub(r"[^A-Za-z0-9_.-]+", ".", "-".join(parts)) + time.strftime("-%Y%m%d-%H%M%S", now)


def _new_folder(wanted: Path) -> Path:
    """Creates the folder `wanted`, or `wanted-2`, `wanted-3`, ... if it exists, and returns it.

    Checking for existence first would be a race between processes.
    """
    with user_errors("create the run directory", wanted):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    raise UserError(f"{wanted} and {wanted.name}-2 to -999 already exist: choose a folder with --run-dir")


def lock(run_dir: Path) -> None:
    """Locks the run for this process until `unlock` or the end of the process. Evaluations and reports need no lock.

    Raises `UserError`, which names the other process, if the run is locked. If the file system does not support locks,
    only a warning is printed.
    """
    path = run_dir.absolute() / LOCK
    held = _locks.get(run_dir.absolute())
    if held is not None and is_at(held, path):
        return
    unlock(run_dir)
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
                        f"{run_dir} is in use by {holder or 'another process'}: wait until it ends or stop it, then "
                        f"continue with --resume {run_dir}"
                    ) from None
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                    raise
                console.say(
                    f"{run_dir}: the file system does not support locks; make sure that only one process uses it"
                )
                return
            if is_at(handle, path):
                break
            os.close(handle)  # another process removed the file after it was opened: try again
        os.ftruncate(handle, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    _locks[run_dir.absolute()] = handle


def unlock(run_dir: Path) -> None:
    """Releases the lock taken by `lock`. Does nothing if this process does not hold it."""
    handle = _locks.pop(run_dir.absolute(), None)
    if handle is not None:
        os.close(handle)


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Writes config.toml, the settings that a later `--resume` uses, with masked credentials."""
    write_text(run_dir / "config.toml", mask_credentials(to_toml(config)))


def record_start(run_dir: Path) -> None:
    """Adds this start of a resumed run to versions.json."""
    write_json(run_dir / VERSIONS, with_start(read_json(run_dir / VERSIONS)))


def find_run_dir(path: Path) -> Path:
    """Returns the run directory for a path to it, to its checkpoints folder or to a checkpoint. Raises `UserError`."""
    for folder in (path, *path.absolute().parents[:2]):
        if (folder / "config.toml").is_file():
            return folder
    raise UserError(f"{path} is not a run directory: it contains no config.toml")


def load_config(run_dir: Path) -> TrainConfig:
    """Returns the config with which the run was started or last resumed.

    Raises `UserError` if the file lacks settings, or if an environment variable would replace the generated data of the
    run by other data.
    """
    path = run_dir / "config.toml"
    values, config = read_toml(path), load_toml(path, of_run=True)
    for key in NEEDED_KEYS:
        table, _, name = key.rpartition(".")
        inner = values.get(table, {}) if table else values
        if not isinstance(inner, dict) or name not in inner:
            raise UserError(
                f"{path} has no {key}, so it is not the config of a run as it was written: restore the file"
            )
    if variable := data_variable(config.env):
        raise UserError(
            f'{run_dir} was started without --env.data, but {variable} is set now: unset it, or add data = "FOLDER" '
            f"to [env] in {run_dir / 'config.toml'}"
        )
    return config


def check_consent(env: EnvConfig, given: bool, option: str) -> None:
    """Raises `UserError` where a run's config, which may be somebody else's, has code from data files run and the
    command line does not allow it. `option` is what would allow it."""
    if (code := env.code_in_data()) and not given:
        raise UserError(f"{code}: if you trust them, add {option}")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON, atomically. Raises `UserError`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; returns {} if the file does not exist. Raises `UserError` if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"cannot read {path}: {e}") from e
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return value


def write_episodes(run_dir: Path, step: int, trajectories: Sequence[Trajectory]) -> None:
    """Writes sampled episodes as text to episodes/step_<step>.txt."""
    if trajectories:
        text = "\n\n".join(episode_text(t) for t in trajectories)
        write_text(run_dir / "episodes" / f"step_{step:06d}.txt", text + "\n")


def write_step(run_dir: Path, step: int, trajectories: Sequence[Trajectory], num_episodes: int) -> None:
    """Writes what a training step played: its tasks, and the first `num_episodes` episodes as text."""
    write_tasks(run_dir, step, trajectories)
    write_episodes(run_dir, step, trajectories[:num_episodes])


def write_batch(run_dir: Path, trajectories: Sequence[Trajectory], logprobs: Sequence[Any]) -> Path:
    """Writes the batch of a step to skipped_batch.jsonl, one JSON object per episode, and returns the path.

    `logprobs` holds one array per transition, the trainer's log-probs of its action tokens. NaN and infinite values are
    written as `NaN` and `Infinity`, as Python's json module does by default.
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
    """Formats an episode as text: the task, then each command and observation."""
    head = (
        f"=== {trajectory.task.task_id}   {'won' if trajectory.won else 'lost'}   return {trajectory.episode_return:g}"
    )
    lines = [head, trajectory.intro_text]
    for number, t in enumerate(trajectory.transitions, 1):
        lines.append(f"[{number}] > {t.command}{'' if t.valid else '   (invalid)'}")
        lines.append(t.observation_text)
    return "\n".join(lines)
