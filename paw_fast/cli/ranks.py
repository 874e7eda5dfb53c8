"""Runs `paw-fast train` on several ranks: as the leader, as a follower, or in the processes of torch's launcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paw_fast.config import TrainConfig, validate
from paw_fast.distributed import launch
from paw_fast.distributed.launch import is_follower

__all__ = ["follow", "is_follower", "run"]


def follow(prepare: Callable[[], object]) -> int:
    """What a rank other than 0 does, after `prepare()`: it takes part in what rank 0 runs, which reads the options."""
    prepare()
    from paw_fast.distributed.leader import follow

    return follow()


def run(config: TrainConfig, args: Sequence[str], start: Callable[[TrainConfig], int]) -> int:
    """Calls `start` with the config; with several ranks, as their leader, or in the processes of a launcher, which gets
    the options `args`. Returns the exit status."""
    config = launch.with_world_size(config, any(arg.startswith("--trainer.gpus") for arg in args))
    if launch.needs_launcher(config):
        return launch.launch(config.trainer.gpus, args)
    if config.trainer.gpus == 1:
        return start(config)
    validate(config)
    from paw_fast.distributed.leader import leading

    with leading():
        return start(config)
