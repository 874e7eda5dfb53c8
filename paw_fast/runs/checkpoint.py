"""Saves and loads checkpoints of a training run: written atomically, verified on loading, bit-exact on resuming.

    RUN/checkpoints/step_000040/
        config.json  generation_config.json  model.safetensors  tokenizer.json ...    Hugging Face format
        adapter_config.json  adapter_model.safetensors         with LoRA in place of model.safetensors: PEFT's format
        optimizer.pt  scheduler.pt  critic.pt  rng.pt                                 tensors and plain values only
        state.json                                                                    schema, step, the caller's `extra`
        manifest.json                                                                 size and SHA-256 of every file

A checkpoint is written into a hidden folder (`.tmp-step_000040`), flushed to disk and then renamed, so a folder named
`step_*` is always complete. If the disk fills up or the process is killed during a save, older checkpoints are
unaffected; the next save removes the incomplete folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import sync_folder, user_errors
from paw_fast.runs.manifest import MANIFEST, SCHEMA, changes, read_manifest, seal
from paw_fast.runs.memory_errors import describe_out_of_memory
from paw_fast.runs.rng import capture_rng_states, restore_rng_states

STATE = "state.json"
_NAME = re.compile(r"step_(\d{6,})$")
TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. Produced by `load_checkpoint`, consumed by the training loop when it resumes.

    The model and tokenizer are loaded from `path` with `from_pretrained`; `restore` restores everything else.

    >>> Checkpoint(Path("runs/a/checkpoints/step_000040"), 40, {"policy_version": 40}).step
    40
    """

    path: Path
    step: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    optimizer_state: dict[str, Any] | None = None
    scheduler_state: dict[str, Any] | None = None
    critic_state: dict[str, Any] | None = None
    rng_states: Mapping[str, Any] = field(default_factory=dict)

    def restore(self, *, optimizer: Any = None, scheduler: Any = None, critic: Any = None, rng: bool = True) -> None:
        """Loads the saved states into the given objects and, with `rng`, into the global random generators.

        The objects must have been built with the settings of the saved run. Raises `UserError` when a state is missing
        from the checkpoint or does not fit its object.
        """
        pairs = (
            ("optimizer", optimizer, self.optimizer_state),
            ("scheduler", scheduler, self.scheduler_state),
            ("critic", critic, self.critic_state),
        )
        for name, target, state in pairs:
            if target is None:
                continue
            if state is None:
                raise UserError(f"checkpoint {self.path} holds no {name} state: it cannot be resumed, only evaluated")
            try:
                restore_optimizer(target, state) if name == "optimizer" else target.load_state_dict(state)
            except (ValueError, KeyError, RuntimeError) as error:
                raise UserError(
                    f"the {name} state in {self.path} does not fit this run ({error}): resume with the saved settings"
                ) from error
        if rng:
            restore_rng_states(self.rng_states)


def restore_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Like `optimizer.load_state_dict(state)`, but keeps the saved dtype of every tensor.

    torch casts the state to the dtype of its parameter when it loads it. That would round float32 moments of bfloat16
    weights, so a resumed run would no longer be bit-exact. Raises `ValueError` when the parameter groups differ.
    """
    optimizer.load_state_dict(state)
    if not hasattr(optimizer, "param_groups") or "state" not in state:
        return
    saved_ids = [index for group in state["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in zip(saved_ids, parameters, strict=True):
        for key, value in state["state"].get(index, {}).items():
            current = optimizer.state[parameter].get(key)
            if isinstance(value, torch.Tensor) and isinstance(current, torch.Tensor) and current.dtype != value.dtype:
                optimizer.state[parameter][key] = value.to(device=current.device, copy=True)


# ---------------------------------------------------------------------------------------------------- saving


class _Writer:
    """File object for `torch.save` that records the `OSError` of a failed write.

    `torch.save` replaces that error by one without an errno.
    """

    def __init__(self, path: Path) -> None:
        self._raw = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by `close`
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += self._raw.write(view[done:]) or 0
        except OSError as error:
            self.error = error
            raise
        return done

    def flush(self) -> None:
        self._raw.flush()

    def close(self) -> None:
        self._raw.close()


def _save_torch(value: Any, path: Path) -> None:
    """Like `torch.save`, but raises the `OSError` behind a failed write."""
    writer = _Writer(path)
    try:
        torch.save(value, writer)  # pyright: ignore[reportArgumentType] - needs write and flush only
    except Exception as error:
        if writer.error is not None and not isinstance(error, OSError):
            raise writer.error from error
        raise
    finally:
        writer.close()


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """Writes the Hugging Face files, without the progress bars of transformers and with the modes of other files."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    # safetensors creates files that only the owner can read; give them the same mode as the other files.
    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    model: Any,
    tokenizer: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    critic: Any = None,
    extra: Mapping[str, Any] | None = None,
    rng_states: Mapping[str, Any] | None = None,
) -> Path:
    """Saves everything that is needed to resume a run. Returns the new folder `run_dir/checkpoints/step_<step>`.

    An existing checkpoint of the same step is replaced.

    Args:
        model, tokenizer: objects with `save_pretrained` (of a policy, its `saved_model`).
        optimizer, scheduler, critic: objects with `state_dict`.
        extra: JSON-serializable values, such as the task sampler's state, counters and the policy version.
        rng_states: defaults to `capture_rng_states()`. States of further generators can be stored under other keys.

    Raises:
        UserError: the disk is full or the folder is not writable; older checkpoints are unaffected.
        TypeError: `extra` is not JSON-serializable.
    """
    root = Path(run_dir) / "checkpoints"
    final = root / f"step_{step:06d}"
    temporary = root / f"{TEMPORARY}{final.name}"
    state = {"schema": SCHEMA, "step": step, "extra": dict(extra or {})}
    json.dumps(state)  # raises before anything is written
    if rng_states is None:
        rng_states = capture_rng_states()
    try:
        with user_errors("save a checkpoint", final, "older checkpoints are intact"):
            root.mkdir(parents=True, exist_ok=True)
            _remove_temporaries(root)
            temporary.mkdir()
            save_model(temporary, model, tokenizer)
            if optimizer is not None:
                _save_torch(optimizer.state_dict(), temporary / "optimizer.pt")
            if scheduler is not None:
                _save_torch(scheduler.state_dict(), temporary / "scheduler.pt")
            if critic is not None:
                _save_torch(critic.state_dict(), temporary / "critic.pt")
            _save_torch(dict(rng_states), temporary / "rng.pt")
            _write_json(temporary / STATE, state)
            seal(temporary, step=step)
            _publish(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _publish(temporary: Path, final: Path) -> None:
    """Renames the finished folder to its final name, replacing an existing one."""
    old = final.with_name(f"{TEMPORARY}old-{final.name}")
    if final.exists():
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove_temporaries(root: Path) -> None:
    """Removes what interrupted saves and removals left behind: folders, but also stray files and links."""
    for path in root.glob(f"{TEMPORARY}*"):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


# --------------------------------------------------------------------------------------------------- loading


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Returns the checkpoint folders of a run, oldest first. They are not verified; `load_checkpoint` does that.

    Raises `UserError` when the folder exists but cannot be listed.
    """
    root = Path(run_dir) / "checkpoints"
    try:  # not `glob`, which treats an unreadable folder as empty
        with os.scandir(root) as entries:
            found = [root / entry.name for entry in entries if _NAME.match(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot list the checkpoints in {root}: {error.strerror}; check its permissions") from error
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    match = _NAME.match(path.name)
    return int(match.group(1)) if match else -1


def find_checkpoint(path: Path) -> Path | None:
    """Returns the newest checkpoint of a run directory, or `path` itself if it is a checkpoint; None if there is none.

    Unfinished saves are ignored. Damaged checkpoints are not: loading one raises an error that names an intact
    checkpoint, so that no steps are lost silently.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or _NAME.match(path.name):
        return path if path.is_dir() else None
    found = list_checkpoints(path.parent if path.name == "checkpoints" else path)
    return found[-1] if found else None


def faults_of(folder: Path, contents: bool = True) -> list[str]:
    """Returns descriptions of all differences from the manifest; an empty list means that the checkpoint is intact."""
    files, wrong = read_manifest(folder)
    if wrong:
        return [wrong]
    listed = [] if STATE in files else [f"{MANIFEST} does not list {STATE}"]
    return listed + changes(folder, files, contents)


def verify_checkpoint(path: Path) -> None:
    """Compares every file with the manifest. Raises `UserError` that names the first fault and how to continue."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: give a run directory or its checkpoints/step_* folder")
    faults = faults_of(path)
    if not faults:
        return
    older = [one for one in reversed(list_checkpoints(path.parent.parent)) if step_of(one) < step_of(path)]
    intact = _first_intact(older)
    fix = (
        f"delete that folder to resume from {intact.name}, which is intact"
        if intact
        else "no older checkpoint of this run is intact, so restore it from a copy or start a new run"
    )
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise UserError(f"checkpoint {path} cannot be used: {faults[0]}{more}; {fix}")


def _first_intact(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if not faults_of(path)), None)


def load_checkpoint(path: Path) -> Checkpoint:
    """Verifies every byte of a checkpoint and loads everything except the model.

    `path` is a run directory or a checkpoint, as for `find_checkpoint`. Tensors are loaded to the CPU. Raises
    `UserError` when there is no checkpoint, and when it is damaged; that message names an intact checkpoint, if any.
    """
    found = find_checkpoint(path)
    if found is None:
        raise UserError(f"no checkpoint in {path}: give a run directory or its checkpoints/step_* folder")
    verify_checkpoint(found)
    with user_errors("read the checkpoint", found):
        step, extra = _read_state(found / STATE)
        tensors = {name: _load_torch(found / f"{name}.pt") for name in ("optimizer", "scheduler", "critic", "rng")}
    return Checkpoint(
        path=found,
        step=step,
        extra=extra,
        optimizer_state=tensors["optimizer"],
        scheduler_state=tensors["scheduler"],
        critic_state=tensors["critic"],
        rng_states=tensors["rng"] or {},
    )


def _read_state(path: Path) -> tuple[int, dict[str, Any]]:
    """The step and the caller's values. Raises `UserError`: a whole file need not be a sound one."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        step, extra = state["step"], state["extra"]
        if type(step) is not int or step < 0 or not isinstance(extra, dict):
            raise TypeError("expected a step of 0 or more and an object `extra`")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"checkpoint {path.parent} cannot be used: {path.name} is not as it was written ({error})"
        ) from None
    return step, extra


def _load_torch(path: Path) -> dict[str, Any] | None:
    """Loads tensors and plain values; anything else in the file, such as code, is refused. Raises `UserError`."""
    if not path.is_file():
        return None
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle and torch raise many kinds for a file that is none of theirs
        if describe_out_of_memory(error) is not None:
            raise
        said = " ".join(str(error).split())[:150]
        raise UserError(f"checkpoint {path.parent} cannot be used: {path.name} cannot be read ({said})") from None
    if not isinstance(value, dict):
        raise UserError(f"checkpoint {path.parent} cannot be used: {path.name} holds no dictionary of states")
    return value
