"""What the kernel tests share: random cases, and how large an error may be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paw_fast import kernels as K
from paw_fast.kernels import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Half a unit in the last place of a rounded output, relative; the gradient's only unavoidable error.
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SMALLEST = {torch.float32: 1e-37, torch.bfloat16: 1e-37, torch.float16: 2**-24}


def random_rows(logits: Tensor, vocab: int, generator: torch.Generator, **settings: float) -> K.LossRows:
    """Rows of all three kinds, with ratios on both sides of every clip and references near and far."""
    num = logits.shape[0]

    def normal(scale: float) -> Tensor:
        return torch.randn(num, generator=generator) * scale

    targets = torch.randint(0, vocab, (num,), generator=generator)
    exact = reference.token_logprobs_reference(
        logits[:, :vocab].double(), targets, settings.get("temperature", 1.0), softcap=settings.get("softcap")
    ).logprobs
    return K.LossRows(
        targets=targets,
        kinds=torch.randint(0, 3, (num,), generator=generator, dtype=torch.uint8),
        weights=torch.rand(num, generator=generator),
        old_logprobs=(exact + normal(0.5)).float(),
        ref_logprobs=(exact + normal(0.5)).float(),
        advantages=normal(1.0),
        importance=torch.rand(num, generator=generator) * 2,
    )


def random_transitions(num: int, seed: int, dtype: torch.dtype, decimals: int, share: float | None) -> dict[str, Any]:
    """Arguments of `select_transitions`: segments of 0 to 4 tokens, ties by rounding to `decimals`, now and then NaN.

    share: of the transitions that are candidates; None: no mask.
    """
    g = torch.Generator().manual_seed(seed)

    def offsets() -> Tensor:
        return torch.nn.functional.pad(torch.randint(0, 5, (num,), generator=g).cumsum(0), (1, 0))

    action_offsets, observation_offsets = offsets(), offsets()
    entropies = (torch.rand(int(action_offsets[-1]), generator=g, dtype=torch.float64) * 3).round(decimals=decimals)
    entropies[torch.rand(len(entropies), generator=g) < 0.01] = torch.nan
    return {
        "entropies": entropies.to(dtype),
        "action_offsets": action_offsets,
        "observation_offsets": observation_offsets,
        "lambdas": torch.rand(num, generator=g),
        "num_observation_tokens": int(observation_offsets[-1]),
        "candidates": None if share is None else torch.rand(num, generator=g) < share,
    }


def assert_close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    error = (got.double() - want.double()).abs().max().item() if got.numel() else 0.0
    assert error <= tolerance, f"{what}: error {error:.3g} is more than {tolerance:.3g}"


def assert_gradient(got: Tensor, want: Tensor, scale: float, what: str) -> None:
    """The written gradient: rounded once to its dtype, plus fp32 maths that may lose 1e-6 of the row's scale.

    The last part covers p's relative error: p is known to about |z| * 2^-23, for |z| up to 64 in these tests.
    """
    error = (got.double() - want).abs()
    allowed = want.abs() * (ROUNDING[got.dtype] + 2e-5) + SMALLEST[got.dtype] + 1e-6 * scale
    worst = (error - allowed).max().item() if got.numel() else -1.0
    assert worst <= 0.0, f"{what}: a gradient is off by {worst:.3g} more than allowed"
