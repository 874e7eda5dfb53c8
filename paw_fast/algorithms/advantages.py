"""Computes advantages from rewards: pure functions of tensors. docs/reference/algorithms.md cites every formula.

B trajectories, M transitions, T action tokens; transitions and tokens are ordered by trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import torch
from torch import Tensor

EPSILON = 1e-6


def _check(name: str, *vectors: tuple[str, Tensor]) -> None:
    shapes = [tuple(v.shape) for _, v in vectors]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        got = ", ".join(f"{label} {shape}" for (label, _), shape in zip(vectors, shapes, strict=True))
        raise ValueError(f"{name}: got {got}, expected vectors of one length")


def centre_in_groups(values: Tensor, groups: Tensor, normalize_std: bool) -> Tensor:
    """(x - mean) / (std + 1e-6) inside each group, or x - mean; values [N], groups [N] int -> [N] float32.

    The standard deviation is the sample one (n - 1), as in verl. A group of one, or of equal values, gives 0.
    """
    _check("centre_in_groups", ("values", values), ("groups", groups))
    values = values.double()
    _, index = torch.unique(groups, return_inverse=True)
    counts = torch.bincount(index).double()
    centred = values - (torch.zeros_like(counts).index_add_(0, index, values) / counts)[index]
    # Equal values must give exactly 0, and a mean of equal numbers may be off by a rounding.
    centred = torch.where(centred.abs() < 1e-12 * values.abs().clamp(min=1), 0.0, centred)
    if normalize_std:
        squares = torch.zeros_like(counts).index_add_(0, index, centred**2)
        std = (squares / (counts - 1).clamp(min=1)).sqrt()
        centred = centred / (std[index] + EPSILON)
    return centred.float()


def grpo_advantages(returns: Tensor, groups: Tensor, normalize_std: bool = True) -> Tensor:
    """Group-relative advantages of GRPO (arXiv 2402.03300, section 4.1.2): (R - mean) / (std + 1e-6).

    returns [B] float, groups [B] int (equal where episodes share a task) -> [B] float32. `normalize_std=False` is
    Dr. GRPO (arXiv 2503.20783): R - mean. A group of one, or of equal returns, has advantage 0. With one
    entry per transition instead of per episode, longer episodes weigh more in mean and std, as in verl-agent.
    Raises `ValueError` when the lengths differ.

    >>> grpo_advantages(torch.tensor([10.0, 0.0, 10.0, 0.0]), torch.tensor([0, 0, 0, 0])).tolist()
    [0.8660..., -0.8660..., 0.8660..., -0.8660...]
    """
    return centre_in_groups(returns, groups, normalize_std)


def rloo_advantages(returns: Tensor, groups: Tensor) -> Tensor:
    """RLOO (arXiv 2402.14740), a leave-one-out baseline: R_i minus the mean of the other returns of the group.

    returns [B], groups [B] -> [B] float32; a group of one has advantage 0. Raises `ValueError` for other lengths.

    >>> rloo_advantages(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0, 0, 0])).tolist()
    [3.0, -1.5, -1.5]
    """
    _check("rloo_advantages", ("returns", returns), ("groups", groups))
    centred = centre_in_groups(returns, groups, False).double()
    _, index = torch.unique(groups, return_inverse=True)
    counts = torch.bincount(index).double()[index]
    # R_i - (sum - R_i) / (n - 1) = (R_i - mean) * n / (n - 1)
    return (centred * counts / (counts - 1).clamp(min=1)).float()


def discounted_returns(rewards: Tensor, episodes: Tensor, gamma: float) -> Tensor:
    """Return-to-go of every transition, sum_k gamma^k r_{t+k}, inside its episode.

    rewards [M], episodes [M] int (one run of equal numbers an episode) -> [M] float32. Raises `ValueError` for a
    gamma outside [0, 1].

    >>> discounted_returns(torch.tensor([0.0, 8.0, 1.0]), torch.tensor([0, 0, 1]), 0.5).tolist()
    [4.0, 8.0, 1.0]
    """
    _check("discounted_returns", ("rewards", rewards), ("episodes", episodes))
    if not 0 <= gamma <= 1:
        raise ValueError(f"discounted_returns: gamma is {gamma}, expected a number in [0, 1]")
    out, running, current = rewards.double().tolist(), 0.0, None
    owner = episodes.tolist()
    for t in range(len(out) - 1, -1, -1):
        running = out[t] + (gamma * running if owner[t] == current else 0.0)
        out[t], current = running, owner[t]
    return torch.tensor(out, dtype=torch.float32)


def step_groups(groups: Tensor, anchors: Sequence[str], similarity: float | None = None) -> Tensor:
    """GiGPO's anchor groups (arXiv 2505.10978, section 4.2): transitions of one group that saw the same state.

    groups [M] int, anchors M texts -> [M] int64 numbers of step groups. With `similarity` in (0, 1], a text joins the
    first step group of its group whose first member is at least that similar (`difflib` ratio), as verl-agent does for
    search, where documents rarely repeat to the letter. Raises `ValueError` for other lengths and similarities.

    >>> step_groups(torch.tensor([0, 0, 0, 1]), ["hall", "hall", "shed", "hall"]).tolist()
    [0, 0, 1, 2]
    """
    if groups.dim() != 1 or len(groups) != len(anchors):
        raise ValueError(
            f"step_groups: got groups {tuple(groups.shape)} and {len(anchors)} anchors, expected [M] and M"
        )
    if similarity is not None and not 0 < similarity <= 1:
        raise ValueError(f"step_groups: similarity is {similarity}, expected a ratio in (0, 1]")
    numbers: dict[tuple[int, str], int] = {}
    leaders: dict[int, _Leaders] = {}
    letters = "".join(sorted(set().union(*anchors))) if similarity is not None else ""
    out: list[int] = []
    count = 0
    for group, anchor in zip(groups.tolist(), anchors, strict=True):
        number = numbers.get((group, anchor))
        if number is None and similarity is not None:
            found = leaders.setdefault(group, _Leaders(letters))
            number = found.join(anchor, similarity, count)
        if number is None:
            number = count
        count = max(count, number + 1)
        numbers[group, anchor] = number
        out.append(number)
    return torch.tensor(out, dtype=torch.int64)


class _Leaders:
    """The first texts of the step groups of one group, and how often each of `letters` occurs in them.

    The letters that two texts share bound their similarity from above (`SequenceMatcher.quick_ratio`). This is computed
    for all leaders at once, and the slow exact ratio only of those above the bound.
    """

    def __init__(self, letters: str):
        self._letters = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), np.uint32)
        self._texts: list[str] = []
        self._numbers: list[int] = []
        self._counts = np.zeros((4, len(letters)), np.int32)
        self._lengths = np.zeros(4, np.int64)

    def join(self, text: str, least: float, number: int) -> int:
        """Returns the number of the first leader that is at least this similar; else the text becomes one."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        counts = np.bincount(np.searchsorted(self._letters, codes), minlength=len(self._letters)).astype(np.int32)
        size = len(self._texts)
        shared = np.minimum(self._counts[:size], counts).sum(1)
        total = self._lengths[:size] + len(text)
        bounds = np.where(total > 0, 2.0 * shared / np.maximum(total, 1), 1.0)
        matcher = SequenceMatcher(None, autojunk=False)
        matcher.set_seq2(text)
        for at in np.flatnonzero(bounds >= least).tolist():
            matcher.set_seq1(self._texts[at])
            if matcher.ratio() >= least:
                return self._numbers[at]
        if size == len(self._lengths):
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self._counts[size], self._lengths[size] = counts, len(text)
        self._texts.append(text)
        self._numbers.append(number)
        return number


def gigpo_advantages(
    episode_advantages: Tensor, returns_to_go: Tensor, anchor_groups: Tensor, weight: float = 1.0,
    normalize_std: bool = True,
) -> Tensor:  # fmt: skip
    """GiGPO (arXiv 2505.10978, eq. 8): episode advantage + w * step advantage.

    episode_advantages [M] (each transition's own episode), returns_to_go [M] (discounted), anchor_groups [M] (from
    `step_groups`) -> [M] float32. The step advantage centres the return-to-go inside its anchor group, divided by the
    std where `normalize_std`; alone in its group it is 0. Raises `ValueError` when the lengths differ.
    """
    named = (("episode_advantages", episode_advantages), ("returns_to_go", returns_to_go))
    _check("gigpo_advantages", *named, ("anchor_groups", anchor_groups))
    return episode_advantages.float() + weight * centre_in_groups(returns_to_go, anchor_groups, normalize_std)


def gae(rewards: Tensor, values: Tensor, episodes: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) over the action tokens of whole trajectories.

    rewards [T], values [T] (before each token), episodes [T] int (one run of equal numbers an episode) ->
    advantages [T] and value targets [T] = advantages + values, float32. The value after an episode's last token is 0.
    Observation tokens are not steps of the policy and are skipped. Raises `ValueError` for a gamma or lambda
    outside [0, 1].

    >>> gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([0, 0]), 1.0, 1.0)[0].tolist()
    [0.5, 0.5]
    """
    _check("gae", ("rewards", rewards), ("values", values), ("episodes", episodes))
    for name, value in (("gamma", gamma), ("lambda", lam)):
        if not 0 <= value <= 1:
            raise ValueError(f"gae: {name} is {value}, expected a number in [0, 1]")
    r, v, owner = rewards.double().tolist(), values.double().tolist(), episodes.tolist()
    out = [0.0] * len(r)
    advantage = following = 0.0
    for t in range(len(r) - 1, -1, -1):
        if t == len(r) - 1 or owner[t + 1] != owner[t]:
            advantage = following = 0.0
        advantage = r[t] + gamma * following - v[t] + gamma * lam * advantage
        out[t], following = advantage, v[t]
    advantages = torch.tensor(out, dtype=torch.float64)
    return advantages.float(), (advantages + values.double()).float()


def whiten(advantages: Tensor) -> Tensor:
    """(A - mean) / sqrt(var + 1e-8) over all tokens of the batch [T], var with n - 1, as verl's `masked_whiten`.

    Differences well below 1e-4 are noise of the values and stay small. Equal advantages, or a single one, give 0.

    >>> whiten(torch.tensor([1e-6, -1e-6])).tolist()
    [0.0099..., -0.0099...]
    """
    a = advantages.double()
    if len(a) < 2 or bool((a == a[0]).all()):
        return torch.zeros_like(a).float()
    return ((a - a.mean()) * torch.rsqrt(a.var() + 1e-8)).float()
