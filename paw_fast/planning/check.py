"""Compares a run's predicted memory with the machine's before anything is loaded, and refuses what cannot fit."""

from __future__ import annotations

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.planning.machine import Machine, this_machine
from paw_fast.planning.memory import FITS, TOO_LARGE
from paw_fast.planning.plan import make_plan, problem, size_text
from paw_fast.runs import console


def check_memory(config: TrainConfig, machine: Machine | None = None) -> None:
    """Says in one line how much memory of the GPU the run will need. Raises `UserError` if the GPU has less.

    On the CPU nothing is refused, since memory can be swapped out: a run that may not fit is warned of. machine: None
    looks at this one, by `model.device`.
    """
    if not config.check_memory:
        return
    try:
        machine = machine or this_machine(config.model.device)
    except (RuntimeError, AssertionError):  # no such device: the model is loaded next, and says so
        return
    on_gpu = machine.kind == "cuda"
    try:
        plan = make_plan(config, machine)
    except UserError as error:  # models that the prediction does not know run all the same
        if on_gpu:
            console.say(f"the memory of this run was not predicted: {error}")
        return
    found = problem(plan)
    if plan.verdict == TOO_LARGE and on_gpu:
        raise UserError(f"{found} (`paw-fast plan` shows all parts; --no-check-memory starts the run all the same)")
    if plan.verdict != FITS:
        console.say(f"warning: {found}")
    elif on_gpu:
        trainer = plan.trainer
        console.say(
            f"memory: about {size_text(trainer.peak)} of {size_text(trainer.available)} at the peak "
            f"({trainer.peak_phase})"
        )
    if on_gpu and machine.free is not None and plan.trainer.peak > machine.free and plan.verdict == FITS:
        console.say(
            f"warning: {size_text(machine.free)} of the GPU are free now: another process holds the rest (nvidia-smi)"
        )
