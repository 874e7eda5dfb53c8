"""From rewards to advantages: pure functions of tensors. B trajectories."""

from __future__ import annotations

import torch

EPSILON = 1e-6


def grpo_advantages(returns: torch.Tensor, groups: torch.Tensor, normalize_std: bool = True) -> torch.Tensor:
    """Group-relative advantages of GRPO (arXiv 2402.03300, eq. of outcome supervision): (R - mean) / (std + 1e-6).

    returns [B] float, groups [B] int (equal where episodes share a task) -> [B] float32. The standard deviation
    is the sample one (n - 1), as in verl. `normalize_std=False` is Dr. GRPO (arXiv 2503.20783): R - mean.
    A group of one, or of equal returns, has advantage 0. Raises `ValueError` when the lengths differ.

    >>> grpo_advantages(torch.tensor([10.0, 0.0, 10.0, 0.0]), torch.tensor([0, 0, 0, 0])).tolist()
    [0.8660..., -0.8660..., 0.8660..., -0.8660...]
    """
    if returns.shape != groups.shape or returns.dim() != 1:
        raise ValueError(f"returns {tuple(returns.shape)} and groups {tuple(groups.shape)} must both be [B]")
    returns = returns.double()
    _, index = torch.unique(groups, return_inverse=True)
    counts = torch.bincount(index).double()
    centred = returns - (torch.zeros_like(counts).index_add_(0, index, returns) / counts)[index]
    # Equal returns must give exactly 0, and a mean of equal numbers may be off by a rounding.
    centred = torch.where(centred.abs() < 1e-12 * returns.abs().clamp(min=1), 0.0, centred)
    if normalize_std:
        squares = torch.zeros_like(counts).index_add_(0, index, centred**2)
        std = (squares / (counts - 1).clamp(min=1)).sqrt()
        centred = centred / (std[index] + EPSILON)
    return centred.float()
