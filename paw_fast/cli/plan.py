"""Runs `paw-fast plan`: predicts memory and time of a training run, and says with which settings it fits."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paw_fast.cli import help
from paw_fast.cli.aliases import ALIASES
from paw_fast.cli.option_table import HELP, PROGRAM, options_of
from paw_fast.cli.options import parse, take, take_switch
from paw_fast.cli.settings import base_config
from paw_fast.config import TrainConfig, validate
from paw_fast.errors import UserError
from paw_fast.planning.machine import Machine, measure_cpu, parse_gpus, this_machine
from paw_fast.planning.memory import FITS, PHASES, TIGHT, TOO_LARGE, Prediction, host_bytes
from paw_fast.planning.plan import Change, Plan, count_text, make_plan, problem, size_text

DEFAULT_PRESET = "qwen2.5-1.5b"
"""With --gpus, where no preset is named."""


@dataclass(frozen=True)
class PlanOptions:
    """Predicts the memory of a training run, part by part, and the time of a step, and says what makes it fit.

    Takes every option of `paw-fast train` too, and loads nothing: the model need not be on this machine. Exit status: 0
    where the run fits, 1 where it does not."""

    gpus: str | None = None
    """The GPUs to plan for: a number and a card, as in 1xH100-80GB, 8xA100-40GB, or by memory, 2x24GB. Without it: this
    machine."""
    cpu: bool = False
    """Plan for the CPU of this machine, with its RAM or the limit of its container."""
    json: bool = False
    """Print one JSON object."""


def run_plan(args: list[str]) -> int:
    """The command; returns its exit status. Raises `UserError`."""
    wants_help = not set(HELP).isdisjoint(args)
    args = [arg for arg in args if arg not in HELP]
    for name in ("--resume", "--seeds", "--print-config"):
        if any(arg.partition("=")[0] == name for arg in args):
            raise UserError(f"{PROGRAM} plan does not take {name}: for a run directory say --config RUN/config.toml")
    as_json, cpu, gpus = take_switch(args, "json"), take_switch(args, "cpu"), take(args, "gpus")
    if cpu and gpus is not None:
        raise UserError("--cpu and --gpus exclude each other: leave out one of them")
    machine = parse_gpus(gpus) if gpus is not None else None
    given, rest = list(args), list(args)
    preset, file = take(rest, "preset"), take(rest, "config")
    if machine is not None and preset is None and file is None and take(list(rest), "model") is None:
        preset = DEFAULT_PRESET
        given = ["--preset", preset, *given]
    base, why = base_config(rest, preset, Path(file) if file else None)
    config = parse(TrainConfig, rest, "plan", base, ("--preset", "--config", "--gpus", "--cpu", "--json"))
    if wants_help:
        print(help.command_help(PlanOptions, options_of(PlanOptions), "plan"), end="")
        return 0
    validate(config)
    if machine is None:
        machine = _this_machine("cpu" if cpu else config.model.device)
    _check_gpus(config, machine)
    if machine.kind == "cpu":
        machine = measure_cpu(machine)
    plan = make_plan(config, machine)
    command = _command(given, plan.changes)
    print(json.dumps(as_dict(plan, command)) if as_json else _text(plan, why, command))
    return 1 if plan.verdict == TOO_LARGE else 0


def _this_machine(device: str) -> Machine:
    try:
        return this_machine(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--model.device {device}: no such device on this machine; use cpu, or plan with --gpus"
        ) from error


def _check_gpus(config: TrainConfig, machine: Machine) -> None:
    """Raises `UserError` for rollout GPUs that the machine does not have."""
    wanted = [int(name) for name in config.rollout.gpus.split(",") if name.strip()]
    if machine.kind == "cuda" and wanted and max(wanted) >= machine.count:
        raise UserError(
            f"--rollout.gpus {config.rollout.gpus}: the machine has {machine.count} GPUs, numbered from 0; plan with "
            f"--gpus {max(wanted) + 1}x{machine.card.name}"
        )


def _command(args: Sequence[str], changes: Sequence[Change]) -> str:
    """The command that trains, with the changes in the place of what was given."""
    args = list(args)
    for change in changes:
        names = {change.option, *(alias for alias, full in ALIASES.items() if full == change.option)}
        names |= {name.replace("gradient", "no-gradient") for name in names}
        kept, skip = [], False
        for arg in args:
            if skip and not arg.startswith("--"):
                skip = False
                continue
            name, equals, _ = arg.partition("=")
            skip = name.replace("_", "-") in names and not equals
            if name.replace("_", "-") not in names:
                kept.append(arg)
        args = [*kept, change.option, *([change.value] if change.value else [])]
    return shlex.join([PROGRAM, "train", *args])


# ------------------------------------------------------------------------------------------------------ output


def as_dict(plan: Plan, command: str) -> dict[str, Any]:
    """The plan as plain JSON-able values; sizes in bytes, times in seconds."""
    time = plan.time
    return {
        "verdict": plan.verdict, "model": plan.shape.name, "num_parameters": plan.shape.num_parameters,
        "machine": plan.machine.words, "offloaded_bytes": host_bytes(plan.config, plan.shape),
        "devices": [
            {
                "device": device.device, "available_bytes": device.available, "peak_bytes": device.peak,
                "peak_phase": device.peak_phase, "verdict": device.verdict,
                "phases": {name: device.phase(name) for name in PHASES},
                "parts": [
                    {"name": part.name, "bytes": part.size, "phases": list(part.phases), "note": part.note}
                    for part in device.parts
                ],
            }
            for device in plan.devices
        ],
        "step_s": None if time is None else {
            "rollout": time.rollout, "token_statistics": time.statistics, "update": time.update, "total": time.total,
        },
        "fits_with_one_of": [change.text for change in plan.alone],
        "fits_with_all_of": [change.text for change in plan.together],
        "command": command,
    }  # fmt: skip


def _text(plan: Plan, why: str, command: str) -> str:
    config, shape, work = plan.config, plan.shape, plan.work
    head = (
        f"{shape.name}, {count_text(shape.num_parameters)} parameters; {config.env.name}, {config.algo.name}, "
        f"{config.layout}; {work.episodes} episodes a step of about {work.turns:.0f} turns; sequences of about "
        f"{work.sequence} tokens, at most {work.longest}"
    )
    lines = [*([why] if why else []), head, f"machine: {plan.machine.words}"]
    for device in plan.devices:
        lines += ["", *_table(device)]
    if len(plan.devices) == 1 and plan.machine.kind == "cuda" and plan.machine.count > 1:
        lines += [
            "",
            "The trainer uses one GPU; the others can generate: --rollout.placement process --rollout.gpus 1,...",
        ]
    if (host := host_bytes(config, shape)) and plan.machine.kind == "cuda":
        lines += ["", f"the CPU's memory for --offload: {size_text(host)}"]
    lines += ["", _time(plan), ""]
    found = problem(plan)
    lines.append(found if found else FITS)
    if plan.verdict == TIGHT:
        lines.append("What allocators keep is estimated: such a run is started, and may run out of memory.")
    if plan.verdict == FITS or plan.changes:
        lines += ["", f"    {command}"]
    return "\n".join(lines)


def _table(device: Prediction) -> list[str]:
    """The parts in each phase, and their sum."""
    width = max(len(part.name) for part in device.parts) + 2
    phases = [name for name in PHASES if device.phase(name)]
    columns = [max(11, len(name) + 2) for name in phases]
    row = lambda name, cells: name.ljust(width) + "".join(c.rjust(w) for c, w in zip(cells, columns, strict=True))  # noqa: E731
    lines = [row(device.device if len(device.device) < width else "", phases)]
    if not lines[0].strip().startswith(device.device):
        lines.insert(0, device.device)
    for part in device.parts:
        cells = [size_text(part.size) if name in part.phases else "" for name in phases]
        lines.append(f"{row(part.name, cells)}   {part.note}".rstrip())
    lines.append(row("sum", [size_text(device.phase(name)) for name in phases]))
    share = device.peak / device.available
    lines.append(
        f"peak: {size_text(device.peak)} in the {device.peak_phase}, {share:.0%} of {size_text(device.available)}"
    )
    return lines


def _time(plan: Plan) -> str:
    if plan.time is None:
        return "time of a step: not estimated, since the card's rates are not known"
    t = plan.time
    return (
        f"time of a step, roughly: {_seconds(t.total)}: rollouts {_seconds(t.rollout)}, token statistics "
        f"{_seconds(t.statistics)}, update {_seconds(t.update)}"
    )


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"
