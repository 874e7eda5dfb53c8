"""Fused C++/CUDA kernels, registered as torch operators. See docs/reference/kernels.md.

The package can be imported without the compiled extension; calling an op then raises an error that says how to fix it.
"""

import importlib
import pkgutil

from paw_fast.kernels.linear_paw_loss import linear_paw_loss
from paw_fast.kernels.native import kernel_info, ops, unavailable_reason
from paw_fast.kernels.paw_loss import (
    CLIPPED,
    DUAL_CLIPPED,
    IGNORED,
    POLICY,
    SATURATED,
    WORLD_MODEL,
    LossOutput,
    LossRows,
    LossSettings,
    paw_loss,
)
from paw_fast.kernels.select_transitions import SELECTION_MODES, Selection, select_transitions
from paw_fast.kernels.token_logprobs import TokenLogprobs, token_logprobs
from paw_fast.kernels.vocab_parallel_paw_loss import vocab_parallel_paw_loss, vocab_slice

# Every module of this folder declares its ops when it is imported, so a new one needs no line here.
for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
OPS = ops()

__all__ = [
    "CLIPPED",
    "DUAL_CLIPPED",
    "IGNORED",
    "OPS",
    "POLICY",
    "SATURATED",
    "SELECTION_MODES",
    "WORLD_MODEL",
    "LossOutput",
    "LossRows",
    "LossSettings",
    "Selection",
    "TokenLogprobs",
    "kernel_info",
    "linear_paw_loss",
    "paw_loss",
    "select_transitions",
    "token_logprobs",
    "unavailable_reason",
    "vocab_parallel_paw_loss",
    "vocab_slice",
]
