"""Starts the processes of a run on several devices with torch's launcher, and tells what that has started. No torch.

`paw-fast train --trainer.gpus N ...` is `torchrun --nproc-per-node N -m paw_fast train ...`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.runs import stop_signals


def world_size() -> int:
    """Number of processes that a launcher has started, 1 without a launcher."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def is_follower() -> bool:
    """Whether this process is a rank other than 0 of several."""
    return world_size() > 1 and _number("RANK", 0) > 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
        raise UserError(f"the environment variable {name} is {text!r}, expected a number, as torchrun sets it")
    return int(text or default)


def with_world_size(config: TrainConfig, given: bool) -> TrainConfig:
    """The config with the number of processes that torchrun has started. Raises `UserError` where `--trainer.gpus` is
    `given` and another."""
    size = world_size()
    if size == 1 or size == config.trainer.gpus:
        return config
    if given:
        raise UserError(
            f"--trainer.gpus is {config.trainer.gpus}, and torchrun has started {size} processes: leave it out"
        )
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, gpus=size))


def needs_launcher(config: TrainConfig) -> bool:
    """Whether the run wants several processes, and this is the only one."""
    return config.trainer.gpus > 1 and world_size() == 1


def launch(size: int, args: Sequence[str]) -> int:
    """Runs `paw-fast train` with `args` in `size` processes through torchrun; returns the exit status of rank 0, or of
    the first process that failed."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")  # s: rank 0 saves a checkpoint when it is stopped
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signals = "--signals-to-handle", ",".join(one.name for one in stop_signals.SIGNALS)
    command = run.parse_args(["--standalone", "--nproc-per-node", str(size), *signals, "-m", "paw_fast"])
    command.training_script_args = ["train", *args]  # not parsed: argparse takes --log for one of its own options
    try:
        run.run(command)
    except ChildFailedError as error:
        failure = error.failures.get(0) or error.get_first_failure()[1]
        return 128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode
    except SignalException as stop:
        return stop_signals.Interrupted(stop.sigval).status
    return 0
