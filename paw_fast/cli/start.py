"""Starts and resumes training runs, for the command line and for the functions of `paw_fast.api`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from paw_fast import registry
from paw_fast.cli.failures import clean_up, memory_errors
from paw_fast.config import TrainConfig, changes_on_resume, validate
from paw_fast.errors import UserError
from paw_fast.planning.automatic import Choices, choose
from paw_fast.planning.check import check_memory
from paw_fast.planning.machine import this_machine
from paw_fast.runs import console, hub, rollback, stop_signals
from paw_fast.runs import run_dir as runs
from paw_fast.runs.resume import is_finished, resume_point, write_missing
from paw_fast.trainer import OnStep, train

MakeOnStep = Callable[[Path], OnStep | None]
"""Makes the callback of a run from its directory; see `trainer.OnStep`."""


def start_run(config: TrainConfig, make_on_step: MakeOnStep = lambda run_dir: None) -> tuple[int, Path]:
    """Trains in a new run directory, and uploads the model with `--push-to-hub`; returns the exit status and the
    directory.

    Raises `UserError` if the run cannot begin; the folder is then as it was before. Also raises `UserError` if the
    upload fails, which loses nothing.
    """
    _check_upload(config)
    choices = choose_here(config)
    config = choices.config
    _check_memory(choices)
    before = rollback.look(config.run_dir or Path("runs") / "new")
    run_dir = runs.create_run(config, choices.notes)
    console.say(f"run directory {run_dir}")
    if choices.line:
        console.say(choices.line)
    if caveats := registry.find("environments", config.env.name).caveats:
        console.say(f"--env {config.env.name}: {'; '.join(caveats)}")
    if warning := retrieval_warning(config):
        console.say(warning)
    try:
        with clean_up(run_dir, before), memory_errors(config):
            status = train(config, run_dir, on_step=make_on_step(run_dir))
    finally:
        runs.unlock(run_dir)
    return status or _upload(config, run_dir), run_dir


def resume_run(
    run_dir: Path, begun: TrainConfig, config: TrainConfig, make_on_step: MakeOnStep = lambda run_dir: None
) -> tuple[int, list[str] | None]:  # fmt: skip
    """Continues a run from its newest checkpoint, with settings that were `begun` before, and uploads the model with
    `--push-to-hub`.

    Returns the exit status, and None; for a run that has done its steps, the names of what was missing and is there
    now: files, the upload. Raises `UserError` for changes that a resume does not allow, and if the upload fails.
    """
    changes_on_resume(run_dir, begun, config)
    validate(config)
    _check_upload(config)
    choices = choose_here(config)
    config = choices.config
    changes = changes_on_resume(run_dir, begun, config)
    _check_memory(choices)
    runs.lock(run_dir)
    try:
        checkpoint = resume_point(run_dir)
        if checkpoint is not None and is_finished(checkpoint, config):
            written = write_missing(run_dir, checkpoint)
            if config.push_to_hub is not None and not hub.is_pushed(run_dir, config.push_to_hub):
                status = _upload(config, run_dir)
                if status:  # stopped, and said so
                    return status, None
                written.append(f"the upload to {config.push_to_hub}")
            return 0, written
        console.say(f"going on with {run_dir}" + (f", changed: {', '.join(changes)}" if changes else ""))
        if choices.line:
            console.say(choices.line)
        with memory_errors(config):
            status = train(config, run_dir, resume=True, on_step=make_on_step(run_dir))
    finally:
        runs.unlock(run_dir)
    return status or _upload(config, run_dir), None


def retrieval_warning(config: TrainConfig) -> str | None:
    """One line where the world-model loss would learn retrieved text by heart; None for other runs."""
    if not config.paw.enabled or not registry.find("environments", config.env.name).is_retrieval:
        return None
    return (
        f"warning: the observations of --env {config.env.name} are retrieved text, which the world-model loss teaches "
        "by heart (compare wm/repeated_passage_error and wm/new_passage_error); policies that collapse after a pass "
        "over such text have been reported: --paw.no-enabled leaves the loss out, --paw.lambda-0 lowers it"
    )


def _check_memory(choices: Choices) -> None:
    """Raises `UserError` for a run that does not fit; the settings that were chosen are then said first."""
    try:
        check_memory(choices.config)
    except UserError:
        if choices.line:
            console.say(choices.line)
        raise


def choose_here(config: TrainConfig) -> Choices:
    """Chooses what the config leaves open for this machine (see `planning.automatic`)."""
    try:
        machine = this_machine(config.model.device)
    except (RuntimeError, AssertionError):  # no such device: the model is loaded next, and says so
        machine = this_machine("cpu")
    problem = None
    if machine.kind == "cuda" and config.rollout.engine == "auto":
        from paw_fast.rollout.engines.vllm_problem import vllm_problem

        problem = vllm_problem(try_import=True)
    return choose(config, machine, problem)


def _check_upload(config: TrainConfig) -> None:
    """Raises `UserError` if it is clear that the upload at the end of the run will fail."""
    if config.push_to_hub is None:
        return
    try:
        hub.check_target(config.push_to_hub, "--push-to-hub")
    except UserError as error:
        raise UserError(f"{error}; or train without --push-to-hub and upload later with paw-fast push") from None


def _upload(config: TrainConfig, run_dir: Path) -> int:
    """Uploads the model of a finished run, if it is asked for; returns the exit status.

    Raises `UserError` with the command that repeats the upload.
    """
    if config.push_to_hub is None:
        return 0
    again = hub.push_command(run_dir, config.push_to_hub, config.push_private)
    try:
        done = hub.push(run_dir, config.push_to_hub, config.push_private)
    except stop_signals.Interrupted as stop:
        console.say(f"stopped: the run is complete and its upload is not; repeat the upload with: {again}")
        return stop.status
    except UserError as error:
        raise UserError(
            f"the run is complete, but its upload to {config.push_to_hub} failed: {error}; repeat the upload with: "
            f"{again}"
        ) from error
    console.say(f"model of step {done.step} uploaded: {done.url}")
    return 0
