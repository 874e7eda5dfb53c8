"""Defines the settings of the warm start. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from paw_fast.config.ranges import COEFFICIENT, LEARNING_RATE, LEAST_VOCAB, SEED, Range


@dataclass(frozen=True)
class WarmStartConfig:
    """Imitation of expert demonstrations, for the `tiny` model only; deliberately weak, so that RL has room."""

    episodes: Annotated[int, Range(1, 1 << 24)] = 1600
    """Number of demonstrations (episodes of the expert) that are imitated, each on another training task."""
    epochs: Annotated[int, Range(1, 1 << 16)] = 1
    """Number of passes over the demonstrations."""
    learning_rate: Annotated[float, LEARNING_RATE] = 2e-3
    """Maximum learning rate, with linear warm-up over a tenth of the steps and linear decay."""
    noop_share: Annotated[float, Range(0, 1, open_high=True)] = 0.15
    """Share of the episodes, the last ones, with needless commands: a habit for the training to break."""
    noop_prob: Annotated[float, Range(0, 1, open_high=True)] = 0.7
    """In those episodes, the probability that a command that does nothing is put before a command of the expert; it is
    imitated too. Only for environments that have such a command."""
    mistake_prob: Annotated[float, Range(0, 1, open_high=True)] = 0.15
    """Probability that a useless command is put before a command of the expert. It is not imitated; the model learns
    from what the expert does after it how to recover from mistakes."""
    vocab_size: Annotated[int, Range(LEAST_VOCAB, 1 << 20)] = 1024
    """Vocabulary size of the tokenizer that is trained on the text of the demonstrations."""
    layers: Annotated[int, Range(1, 1 << 10)] = 2
    """Number of layers of the model."""
    copying: bool = False
    """Initialize the model's last layer so that it copies the tokens it attends to."""
    batch_tokens: Annotated[int, Range(1, 1 << 24)] = 1024
    """Number of tokens per optimizer step."""
    observation_weight: Annotated[float, COEFFICIENT] = 1.0
    """Weight of the language-modeling loss on observation tokens, relative to action tokens."""
    seed: Annotated[int, SEED] = 0
    """Seed of the warm start. The run's seed does not change it, so that runs that differ in --seed share one."""
    cache: bool = True
    """Take the warm start from the cache where another run built the same, and keep it there."""
