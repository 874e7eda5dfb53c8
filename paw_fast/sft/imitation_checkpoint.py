"""Saves how far the imitation of a warm start has come, so that a run that is stopped in it goes on from there."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from paw_fast.runs import console
from paw_fast.runs.atomic_files import create_exclusively, sync_folder, user_errors
from paw_fast.runs.checkpoint import restore_optimizer

SAVE_EVERY_S = 15.0
"""Seconds of imitation that a killed process loses at most; a stop signal loses none."""


class ImitationCheckpoint:
    """The file that holds the state of an imitation: model, optimizer, losses and the number of steps done.

    It is replaced whole or not at all, and begins with the SHA-256 of the rest. `key` names what is imitated: the state
    of another imitation is not continued.
    """

    def __init__(
        self, path: Path, key: str, every_s: float = SAVE_EVERY_S, clock: Callable[[], float] = time.monotonic
    ):
        self.path, self._key, self._every_s, self._clock = path, key, every_s, clock
        self._saved_at = clock()

    def is_due(self) -> bool:
        """Whether the last save is `every_s` seconds ago."""
        return self._clock() - self._saved_at >= self._every_s

    def save(self, steps: int, losses: list[float], model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Saves the state after `steps` optimizer steps. Raises `UserError` where it cannot be written."""
        buffer = io.BytesIO()
        state = {
            "key": self._key, "steps": steps, "losses": torch.tensor(losses, dtype=torch.float64),
            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        }  # fmt: skip
        torch.save(state, buffer)
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        with user_errors("save the progress of the imitation", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with create_exclusively(temporary, "wb") as file:
                file.write(hashlib.sha256(buffer.getbuffer()).digest())
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            sync_folder(self.path.parent)
        self._saved_at = self._clock()

    def restore(self, model: Any, optimizer: torch.optim.Optimizer) -> tuple[int, list[float]]:
        """Loads a saved state into the model and optimizer; returns the steps done and their losses.

        (0, []) where there is none. A damaged file is said in one line, and the imitation begins again.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return 0, []
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            console.say(f"{self.path} is damaged: the imitation begins again")
            return 0, []
        state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
        if state["key"] != self._key:
            console.say(f"{self.path} is of other demonstrations or settings: the imitation begins again")
            return 0, []
        model.load_state_dict(state["model"])
        restore_optimizer(optimizer, state["optimizer"])
        return state["steps"], state["losses"].tolist()

    def remove(self) -> None:
        """Removes the file, where there is one."""
        with user_errors("remove the progress of the imitation", self.path):
            self.path.unlink(missing_ok=True)
