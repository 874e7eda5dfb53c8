"""Repeats a computation with smaller micro-batches when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from paw_fast.runs import console
from paw_fast.runs.memory_errors import describe_out_of_memory

T = TypeVar("T")

MIN_TOKENS = 256
"""Token budget that is not halved any more."""


class MemoryGuard:
    """Holds the limits of a micro-batch, and halves them when a computation runs out of memory.

    tokens: the token budget. chunk: rows of logits that exist at a time. Losses and their gradients do not depend on
    them but for rounding: the denominators are those of the whole optimizer batch.

    >>> guard = MemoryGuard(tokens=1024, chunk=64)
    >>> guard.run(lambda: guard.tokens)
    1024
    """

    def __init__(self, tokens: int, chunk: int, say: Callable[[str], object] = console.say):
        self.tokens, self.chunk, self._say = tokens, chunk, say

    def run(self, compute: Callable[[], T], undo: Callable[[], object] = lambda: None) -> T:
        """Returns `compute()`. Where it runs out of memory, calls `undo`, halves the limits, and computes anew.

        The limits stay halved. Raises the error of the last attempt once the token budget is at `MIN_TOKENS`.
        """
        while True:
            try:
                return compute()
            except Exception as error:
                what = describe_out_of_memory(error)
                if what is None or self.tokens <= MIN_TOKENS:
                    raise
            # Not in the handler: the error's traceback holds the tensors of the failed attempt.
            undo()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self.tokens, self.chunk = max(MIN_TOKENS, self.tokens // 2), max(1, self.chunk // 2)
            self._say(
                f"warning: {what}: computing again with --token-budget {self.tokens}, which holds until this process "
                "ends"
            )
