"""Defines the settings of low-rank adapters (LoRA, arXiv 2106.09685). No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from paw_fast.config.ranges import POSITIVE, Range


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA), trained in place of the model's weights. Needs the extra `lora`."""

    rank: Annotated[int, Range(0, 1 << 12)] = 0
    """Rank of the adapters, which all linear layers except the LM head get; 0 trains the weights themselves. Adapters
    learn with a learning rate about ten times that of the weights."""
    alpha: Annotated[float, POSITIVE] = 32.0
    """The adapters' output is multiplied by alpha / rank (our choice)."""
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Dropout before the adapters, in the passes of the update only: their probability ratios then have noise."""
    head: bool = False
    """Give the LM head an adapter too. It must not share its weights with the input embedding."""
