"""Defines what a run keeps in the memory of the CPU in place of the GPU's. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OffloadConfig:
    """What is kept in the CPU's memory while the model is on a GPU. On the CPU it changes nothing."""

    optimizer: bool = False
    """Keep the optimizer's moments and float32 weights in the CPU's memory, and compute its steps there: saves 12 bytes
    a parameter on the GPU."""
    reference: bool = False
    """Keep the reference model of the KL term in the CPU's memory, and copy it to the GPU layer by layer in each of its
    passes (needs the extra `offload`). With --lora.rank there is no second model."""
