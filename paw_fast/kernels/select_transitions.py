"""Selects the transitions of the world-model loss, and computes the weight of each observation token.

One kernel, on the CPU and on CUDA; see csrc/select_transitions.h. All sizes are known on the host, so it never waits
for the device. Legend: M transitions, A action tokens, W observation tokens of the whole optimizer batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paw_fast.kernels import native

SELECTION_MODES = ("entropy", "lowest", "random", "all")
_WORKSPACE_WORDS = 256 * 12  # kWorkspaceWords in csrc/select_transitions.h


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
    candidates: Tensor | None = None,
) -> Selection:
    """Selects the share `alpha` of the transitions with the highest mean action entropy, and weighs their tokens.

    entropies               [A] fp32 or fp64, of the action tokens, transition after transition
    action_offsets          [M + 1] int64: transition i owns entropies[offsets[i] : offsets[i + 1]]
    observation_offsets     [M + 1] int64, the same for the observation tokens
    lambdas                 [M] fp32, the reward-adaptive weight of each transition's group
    alpha                   in (0, 1]: max(1, floor(alpha * candidates)) transitions are selected; of equal ones the
                            first
    num_observation_tokens  W, as known on the host; reading it from the device would mean waiting
    mode                    "entropy" (the method: the highest), or the ablations "lowest", "random" (with `generator`)
                            and "all" (whatever alpha)
    candidates              [M] bool: the transitions that may be selected, for example those with an observation to
                            predict; with none nothing is selected. None: all of them

    A NaN entropy counts as the highest. The result is the same to the bit on every device and for every number of
    threads (given the same `scores` in mode "random"). Raises ValueError for shapes, dtypes, devices and values; on
    CUDA offsets that do not fit the tokens are clamped instead, without a host synchronisation. Raises RuntimeError
    where the kernel cannot run.

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
    return Selection(
        *torch.ops.paw_fast.select_transitions(
            entropies,
            action_offsets,
            observation_offsets,
            lambdas,
            _noise(num, entropies.dtype, lambdas.device, candidates, generator) if mode == "random" else None,
            candidates,
            1.0 if mode == "all" else alpha,
            num_observation_tokens,
            mode == "lowest",
        )
    )


def _noise(
    num: int, dtype: torch.dtype, device: torch.device, candidates: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """Returns [M] random scores. Those of candidates do not depend on the transitions between them."""
    # Numbers of a generator on the host are the same for every device.
    noise = torch.rand(num, generator=generator, device=generator.device if generator else device).to(device, dtype)
    return noise if candidates is None else noise[(candidates.cumsum(0) - 1).clamp(min=0)]


_OP = native.register("select_transitions", "select_transitions")
native.LIBRARY.define(
    "select_transitions(Tensor entropies, Tensor action_offsets, Tensor observation_offsets, Tensor lambdas, "
    "Tensor? scores, Tensor? candidates, float alpha, int num_observation_tokens, bool lowest) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _vector(
    name: str, vector: Tensor, size: int | None, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> Tensor:
    """Returns `vector` as contiguous. Raises ValueError for another shape, dtype or device."""
    fits = vector.dim() == 1 if size is None else vector.shape == (size,)
    if not fits or vector.dtype not in dtypes:
        wanted = " or ".join({torch.float32: "fp32", torch.float64: "fp64"}.get(d, str(d)[6:]) for d in dtypes)
        raise ValueError(
            f"{_OP}: {name} must be {wanted} [{'any' if size is None else size}], "
            f"got {vector.dtype} {tuple(vector.shape)}"
        )
    if vector.device != device:
        raise ValueError(f"{_OP}: {name} is on {vector.device}, lambdas are on {device}")
    return vector.contiguous()


def _check_offsets(name: str, offsets: Tensor, num_tokens: int) -> None:
    """Raises ValueError for invalid offsets on the CPU. On CUDA the kernel clamps them instead, without waiting."""
    if offsets.is_cuda:
        return
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != num_tokens or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(
            f"{_OP}: {name} must rise from 0 to the number of tokens, {num_tokens}; they go from {first} to {last}"
            + ("" if first != 0 or last != num_tokens else " but fall between")
        )


def _run(
    entropies: Tensor, action_offsets: Tensor, observation_offsets: Tensor, lambdas: Tensor, scores: Tensor | None,
    candidates: Tensor | None, alpha: float, num_observation_tokens: int, lowest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    num, device = lambdas.shape[0], lambdas.device
    lambdas = _vector("lambdas", lambdas, num, (torch.float32,), device)
    action_offsets = _vector("action_offsets", action_offsets, num + 1, (torch.int64,), device)
    observation_offsets = _vector("observation_offsets", observation_offsets, num + 1, (torch.int64,), device)
    entropies = _vector("entropies", entropies, None, (torch.float32, torch.float64), device)
    if scores is not None:
        scores = _vector("scores", scores, num, (entropies.dtype,), device)
    if candidates is not None:
        candidates = _vector("candidates", candidates, num, (torch.bool,), device)
    _check_offsets("action_offsets", action_offsets, len(entropies))
    _check_offsets("observation_offsets", observation_offsets, num_observation_tokens)
    means, selected, weights, num_wm_tokens = _fake(
        entropies, action_offsets, observation_offsets, lambdas, scores, candidates, alpha, num_observation_tokens,
        lowest,
    )  # fmt: skip
    workspace = torch.empty(_WORKSPACE_WORDS, dtype=torch.int32, device=device)
    native.call(
        _OP, "select_transitions", device,
        {
            "entropies": entropies, "wide": entropies.dtype == torch.float64, "lowest": lowest, "alpha": alpha,
            "num_transitions": num, "num_action_tokens": len(entropies),
            "num_observation_tokens": num_observation_tokens, "action_offsets": action_offsets,
            "observation_offsets": observation_offsets, "lambdas": lambdas, "scores": scores,
            "candidates": candidates, "means": means, "selected": selected, "weights": weights,
            "num_wm_tokens": num_wm_tokens, "workspace": workspace, "workspace_words": _WORKSPACE_WORDS,
        },
    )  # fmt: skip
    return means, selected, weights, num_wm_tokens


for _key in ("CPU", "CUDA"):
    native.LIBRARY.impl("select_transitions", _run, _key)


@torch.library.register_fake("paw_fast::select_transitions", lib=native.LIBRARY)
def _fake(
    entropies: Tensor, action_offsets: Tensor, observation_offsets: Tensor, lambdas: Tensor, scores: Tensor | None,
    candidates: Tensor | None, alpha: float, num_observation_tokens: int, lowest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    num = lambdas.shape[0]
    return (
        entropies.new_empty(num),
        entropies.new_empty(num, dtype=torch.bool),
        lambdas.new_empty(num_observation_tokens),
        entropies.new_empty((), dtype=torch.int64),
    )
