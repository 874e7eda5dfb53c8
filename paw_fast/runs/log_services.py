"""Sends metrics to Weights & Biases and to Trackio. Imports no torch.

RUN/log_services.json keeps the id of the run at each service and the last step that was sent to it. A resumed run goes
on under the same id, sends no step twice, and first sends the steps that a service has not seen.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs.atomic_files import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = "paw-fast"
STATE = "log_services.json"
_WITHOUT_LOGIN = ("offline", "dryrun", "disabled", "shared")
"""Values of WANDB_MODE with which wandb needs no key."""


def check_services(names: Sequence[str]) -> None:
    """Raises `UserError` for a service whose package is not installed or that nobody is logged in to.

    Called before a run directory is made.
    """
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UserError(f"--log {name} needs {name}, which is not installed: {install_hint(name)}")
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") not in _WITHOUT_LOGIN:
        import wandb

        # Older releases have no way to ask without a prompt; `wandb.init` then reports what is missing.
        if "prompt" in inspect.signature(wandb.login).parameters and not _logged_in(wandb):
            raise UserError(
                "--log wandb: no API key: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to keep the "
                "metrics on this machine"
            )


def _logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except Exception:  # wandb's errors have no common base class for a key of the wrong form
        return False


class _Run(Protocol):
    """A run at a service, as both packages have it."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class LogServices:
    """The services that a run sends its metrics to.

    Args:
        run_dir: folder of the run; its config.toml is sent as the settings.
        names: services other than TensorBoard.
        rows: the metrics of earlier steps, by name, each with its `step`; sent to services that have not seen them.

    Raises `UserError` if a service refuses the run.
    """

    def __init__(self, run_dir: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self._path = Path(run_dir) / STATE
        self._state = _read_state(self._path) if names else {}
        self._runs: dict[str, _Run] = {}
        settings = _settings(Path(run_dir) / "config.toml") if names else {}
        for name in names:
            about = self._state.setdefault(name, {"id": uuid.uuid4().hex[:8], "last_step": -1})
            self._write()  # before the service knows the id: a run that is killed now goes on under it
            start = {"wandb": _start_wandb, "trackio": _start_trackio}[name]
            try:
                self._runs[name] = start(Path(run_dir), about["id"], settings)
            except Exception as error:  # the packages raise errors of many classes, of their network libraries too
                said = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"--log {name}: {said}") from error
        for row in rows:
            values = {key: one for key, one in row.items() if key != "step" and isinstance(one, float)}
            self.log(int(row["step"]), values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends finite values of a step to the services that have not seen the step."""
        late = [name for name in self._runs if step > self._state[name]["last_step"]]
        for name in late:
            self._runs[name].log(dict(values), step=step)
            self._state[name]["last_step"] = step
        if late:
            self._write()

    def close(self) -> None:
        """Waits until everything is sent. Safe to call twice."""
        for run in self._runs.values():
            run.finish()
        self._runs = {}

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._state, indent=1, sort_keys=True) + "\n")


def _read_state(path: Path) -> dict[str, dict[str, Any]]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): {"id": str(one["id"]), "last_step": int(one["last_step"])} for name, one in state.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"cannot read {path} ({error}): remove it to begin new runs at the services") from error


def _settings(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _start_wandb(run_dir: Path, id: str, settings: dict[str, Any]) -> _Run:
    import wandb

    # Their capture of the terminal's output would break the progress bars.
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=run_dir.name, id=id, resume="allow", dir=str(run_dir),
        config=settings, settings=wandb.Settings(console="off"),
    )  # fmt: skip


def _start_trackio(run_dir: Path, id: str, settings: dict[str, Any]) -> _Run:
    import trackio

    # A run is found again by its name, which must be its own: folders of different places may have equal names.
    return trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=f"{run_dir.name}-{id}", resume="allow",
        config=settings, embed=False, auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip
