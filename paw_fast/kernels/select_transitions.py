"""Op (d): which transitions take part in the world-model loss, and the weight of each observation token.

A few launches of torch's own operators, all sizes known on the host: nothing waits for the device, nothing adds
atomically.
Legend: M transitions, A action tokens, W observation tokens of the whole optimizer batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paw_fast.kernels import native

SELECTION_MODES = ("entropy", "lowest", "random", "all")


class Selection(NamedTuple):
    mean_entropies: Tensor  # [M] like entropies: mean over the transition's action tokens; 0 where it has none
    selected: Tensor  # [M] bool
    wm_weights: Tensor  # [W] fp32: lambda / N_WM on selected transitions, else 0
    num_wm_tokens: Tensor  # scalar int64, N_WM: observation tokens of the selected transitions


def select_transitions(
    entropies: Tensor,
    action_offsets: Tensor,
    observation_offsets: Tensor,
    lambdas: Tensor,
    alpha: float,
    num_observation_tokens: int,
    *,
    mode: str = "entropy",
    generator: torch.Generator | None = None,
) -> Selection:
    """Selects the share `alpha` of the transitions with the highest mean action entropy, and weighs their tokens.

    entropies               [A] fp32 or fp64, of the action tokens, transition after transition
    action_offsets          [M + 1] int64: transition i owns entropies[offsets[i] : offsets[i + 1]]
    observation_offsets     [M + 1] int64, the same for the observation tokens
    lambdas                 [M] fp32, the reward-adaptive weight of each transition's group
    alpha                   in (0, 1]: max(1, floor(alpha * M)) transitions are selected; of equal ones the first
    num_observation_tokens  W, which the host knows; asking the device for it would mean waiting
    mode                    "entropy" (the method: the highest), or the ablations "lowest", "random" (with `generator`)
                            and "all" (whatever alpha)

    A NaN entropy counts as the highest. Raises ValueError for shapes and values. No host synchronisation.

    >>> select_transitions(torch.tensor([1.0, 3.0, 0.5]), torch.tensor([0, 2, 3]), torch.tensor([0, 1, 5]),
    ...                    torch.ones(2), 0.5, 5).wm_weights
    tensor([1., 0., 0., 0., 0.])
    """
    num = lambdas.shape[0]
    if num == 0 or not 0.0 < alpha <= 1.0 or mode not in SELECTION_MODES:
        raise ValueError(
            "select_transitions: needs at least 1 transition, alpha in (0, 1] and mode one of "
            f"{', '.join(SELECTION_MODES)}; got {num}, {alpha} and {mode!r}"
        )
    for name, offsets in (("action_offsets", action_offsets), ("observation_offsets", observation_offsets)):
        if offsets.shape != (num + 1,) or offsets.dtype != torch.int64:
            raise ValueError(
                f"select_transitions: {name} must be int64 [{num + 1}], got {offsets.dtype} {tuple(offsets.shape)}"
            )
    wide = entropies.dtype in (torch.float32, torch.float64)
    if entropies.dim() != 1 or not wide or lambdas.dtype != torch.float32:
        raise ValueError(
            f"select_transitions: entropies must be an fp32 or fp64 vector and lambdas fp32, got {entropies.dtype} "
            f"{tuple(entropies.shape)} and {lambdas.dtype}"
        )
    noise = torch.rand(num, generator=generator, device=lambdas.device) if mode == "random" else None
    return Selection(
        *torch.ops.paw_fast.select_transitions(
            entropies,
            action_offsets,
            observation_offsets,
            lambdas,
            noise,
            num if mode == "all" else max(1, math.floor(alpha * num + 1e-9)),
            num_observation_tokens,
            mode == "lowest",
        )
    )


_OP = native.register("select_transitions")  # plain tensor operations
native.LIBRARY.define(
    "select_transitions(Tensor entropies, Tensor action_offsets, Tensor observation_offsets, Tensor lambdas, "
    "Tensor? scores, int count, int num_observation_tokens, bool lowest) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _run(
    entropies: Tensor, action_offsets: Tensor, observation_offsets: Tensor, lambdas: Tensor, scores: Tensor | None,
    count: int, num_observation_tokens: int, lowest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    # `unsafe` leaves out the check of the offsets, which would wait for the device.
    sums = torch.segment_reduce(entropies, "sum", offsets=action_offsets, initial=0, unsafe=True)
    means = sums / action_offsets.diff().clamp(min=1)
    order = torch.sort(means if scores is None else scores, descending=not lowest, stable=True).indices
    selected = torch.zeros_like(order, dtype=torch.bool).index_fill_(0, order[:count], True)
    lengths = observation_offsets.diff()
    num_wm_tokens = torch.where(selected, lengths, 0).sum()
    per_transition = torch.where(selected, lambdas, 0.0) / num_wm_tokens.clamp(min=1)
    weights = torch.repeat_interleave(per_transition, lengths, output_size=num_observation_tokens)
    return means, selected, weights, num_wm_tokens


for _key in ("CPU", "CUDA"):
    native.LIBRARY.impl("select_transitions", _run, _key)


@torch.library.register_fake("paw_fast::select_transitions", lib=native.LIBRARY)
def _fake(
    entropies: Tensor, action_offsets: Tensor, observation_offsets: Tensor, lambdas: Tensor, scores: Tensor | None,
    count: int, num_observation_tokens: int, lowest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    num = lambdas.shape[0]
    return (
        entropies.new_empty(num),
        entropies.new_empty(num, dtype=torch.bool),
        lambdas.new_empty(num_observation_tokens),
        entropies.new_empty((), dtype=torch.int64),
    )
