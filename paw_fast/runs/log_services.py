"""Sends metrics to Weights & Biases and to Trackio. Imports no torch.

RUN/log_services.json keeps the id of the run at each service and the last step that was sent to it. A resumed run goes
on under the same id, sends no step twice, and first sends the steps that a service does not have. What a service has is
asked of the service where it can tell: both packages buffer, so a process that is killed loses steps that it has sent.
"""

from __future__ import annotations

import contextvars
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
from paw_fast.runs import console
from paw_fast.runs.atomic_files import user_errors, write_text

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

    A service that fails during the run is left out from then on, with a warning; a resumed run sends it what it lacks.

    Args:
        run_dir: folder of the run; its config.toml is sent as the settings.
        names: services other than TensorBoard.
        rows: the metrics of earlier steps, by name, each with its `step`; sent to services that do not have them.

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
                self._runs[name] = start(Path(run_dir), about, settings)
            except Exception as error:  # the packages raise errors of many classes, of their network libraries too
                self.close()
                raise UserError(f"--log {name}: {_one_line(error)}") from error
            self._write()
        for row in rows:
            values = {key: one for key, one in row.items() if key != "step" and isinstance(one, float)}
            self.log(int(row["step"]), values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends finite values of a step to the services that do not have the step."""
        late = [name for name in self._runs if step > self._state[name]["last_step"]]
        for name in late:
            try:
                self._runs[name].log(dict(values), step=step)
            except Exception as error:
                del self._runs[name]
                console.say(
                    f"warning: --log {name} failed at step {step} and is left out from here on: {_one_line(error)} "
                    "(metrics.jsonl has all steps; a resumed run sends those that are missing)"
                )
            else:
                self._state[name]["last_step"] = step
        if late:
            self._write()

    def close(self) -> None:
        """Waits until everything is sent. Safe to call twice."""
        for name, run in self._runs.items():
            try:
                run.finish()
            except Exception as error:
                console.say(f"warning: --log {name}: {_one_line(error)}")
            else:
                self._state[name].pop("unfinished", None)
        if self._runs:
            self._write()
        self._runs = {}

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._state, indent=1, sort_keys=True) + "\n")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_state(path: Path) -> dict[str, dict[str, Any]]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): _checked(one) for name, one in state.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"cannot read {path} ({error}): remove it to begin new runs at the services") from error


def _checked(about: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a service.

    id, last_step   of the run there; the last step that was sent
    unfinished      wandb offline: the folder that is being written, and the last step that the folders before it have
    """
    checked: dict[str, Any] = {"id": str(about["id"]), "last_step": int(about["last_step"])}
    if (unfinished := about.get("unfinished")) is not None:
        checked["unfinished"] = {"folder": str(unfinished["folder"]), "after_step": int(unfinished["after_step"])}
    return checked


def _settings(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _start_wandb(run_dir: Path, about: dict[str, Any], settings: dict[str, Any]) -> _Run:
    """Starts or continues a run at Weights & Biases, and corrects in `about` what is there already."""
    import wandb

    _set_aside(run_dir / "wandb", about)
    # Their capture of the terminal's output would break the progress bars. A run that the calling program has open
    # stays open and separate.
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=run_dir.name, id=about["id"], resume="allow",
        dir=str(run_dir), config=settings, reinit="create_new", settings=wandb.Settings(console="off"),
    )  # fmt: skip
    if run.resumed:  # online; of an offline run, nobody knows how far it came
        about["last_step"] = run.starting_step - 1
    if run.offline:
        about["unfinished"] = {"folder": Path(run.settings.sync_dir).name, "after_step": about["last_step"]}
    return run


def _set_aside(folder: Path, about: dict[str, Any]) -> None:
    """Renames the offline files of a process that was killed, so that `wandb sync` does not take them.

    They lack the steps that were in wandb's buffer, which may be all; the steps are sent again.
    """
    unfinished = about.pop("unfinished", None)
    if unfinished is None:
        return
    about["last_step"] = unfinished["after_step"]
    killed = folder / Path(unfinished["folder"]).name
    if killed.is_dir():
        with user_errors("rename the incomplete files of wandb", killed):
            killed.rename(folder / f"killed-{killed.name}")


def _start_trackio(run_dir: Path, about: dict[str, Any], settings: dict[str, Any]) -> _Run:
    """Starts or continues a run in Trackio, and corrects in `about` what is there already."""
    import trackio

    # A run is found again by its name, which must be its own: folders of different places may have equal names.
    # In a context of its own, because `init` finishes the run that the calling program has open in its context.
    run = contextvars.Context().run(
        trackio.init, project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=f"{run_dir.name}-{about['id']}",
        resume="allow", config=settings, embed=False, auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip
    # No public function tells the last step. What was sent counts where the attribute is absent, and for a Space that
    # cannot be asked now, which looks like one without steps.
    next_step = getattr(run, "_next_step", None)
    if next_step is not None and (next_step > 0 or getattr(run, "_is_local", False)):
        about["last_step"] = next_step - 1
    return run
