"""Defines the settings of training on several devices. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from paw_fast.config.ranges import Range


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of the trainer's devices."""

    gpus: Annotated[int, Range(1, 1 << 12)] = 1
    """Number of GPUs that train: one process (rank) on each, with the weights, gradients and optimizer states split
    among them (FSDP2). Without GPUs, the number of processes that train on the CPU. The same as `torchrun
    --nproc-per-node N -m paw_fast train`."""
    replicate: Annotated[int, Range(1, 1 << 12)] = 1
    """Number of copies of the weights, each split among gpus / replicate GPUs (HSDP); as many as GPUs is data
    parallelism without splitting."""
