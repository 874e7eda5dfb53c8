"""Decides which checkpoints of a run are kept: the newest ones, and the one with the highest evaluated success.

RUN/best.json names the latter.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import sync_folder, user_errors, write_text
from paw_fast.runs.checkpoint import TEMPORARY, faults_of, list_checkpoints, step_of

BEST = "best.json"


def write_best(run_dir: Path, step: int, success: float, num_tasks: int) -> None:
    """Records in best.json that the checkpoint of `step` has the highest evaluated success so far."""
    text = json.dumps({"step": step, "success": success, "num_tasks": num_tasks}, indent=2)
    write_text(Path(run_dir) / BEST, text + "\n")


def best_checkpoint(run_dir: Path) -> Path:
    """Returns the checkpoint with the highest evaluated success. Raises `UserError` if the run has none."""
    path = Path(run_dir) / BEST
    try:
        step = int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        raise UserError(f"{run_dir} has no {BEST}: it has not been evaluated yet, or ran with --no-keep-best") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path}: {error}; evaluate a checkpoint by its path") from None
    folder = Path(run_dir) / "checkpoints" / f"step_{step:06d}"
    if not folder.is_dir():
        raise UserError(f"{path} names {folder}, which does not exist; evaluate a checkpoint by its path")
    return folder


def prune(run_dir: Path, keep: int, also: Collection[int] = ()) -> list[Path]:
    """Removes all but the newest `keep` checkpoints (at least one is kept) and those of the steps `also`.

    Returns the removed paths.

    Each folder is renamed to a hidden name first, so that an interrupted removal leaves no partial checkpoint. Raises
    `UserError` when a checkpoint cannot be removed.
    """
    removed = [path for path in list_checkpoints(run_dir)[: -max(keep, 1)] if step_of(path) not in also]
    for path in removed:
        with user_errors("remove an old checkpoint", path):
            hidden = path.with_name(f"{TEMPORARY}old-{path.name}")
            os.rename(path, hidden)
            shutil.rmtree(hidden)
    return removed


def recover_replaced(run_dir: Path) -> list[Path]:
    """Restores checkpoints that a process was replacing or removing when it was killed; returns their paths.

    Such a checkpoint has only its hidden name. It is restored if it is intact and its step has no other checkpoint.
    """
    root = Path(run_dir) / "checkpoints"
    restored = []
    for hidden in sorted(root.glob(f"{TEMPORARY}old-step_*")):
        path = root / hidden.name.removeprefix(f"{TEMPORARY}old-")
        if hidden.is_dir() and not hidden.is_symlink() and not path.exists() and not faults_of(hidden):
            with user_errors("restore a checkpoint", path):
                os.rename(hidden, path)
                sync_folder(root)
            restored.append(path)
    return restored
