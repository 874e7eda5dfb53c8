"""Selects the transitions of a batch of verl, and weighs their observation tokens.

A response of verl is one episode: sampled tokens (response mask 1), and tokens of tools or the environment (response
mask 0, attention mask 1) in turn. A run of sampled tokens is an action, the run after it its observation.

Shapes: B responses, T tokens of the longest, P prompt tokens, M transitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paw_fast.algorithms.world_model import group_lambdas
from paw_fast.errors import UserError
from paw_fast.integrations.settings import PawConfig
from paw_fast.integrations.turns import find_turns, select
from paw_fast.types import Transition

WEIGHTS = "rollout_is_weights"
"""The tensor of a batch that holds the weights: verl's own name of its token weights."""


def add_world_model(
    batch: Any, paw: PawConfig, *, seed: Sequence[int] = (0,), num_updates: int = 1, sampled_mask: Tensor | None = None,
) -> dict[str, float]:  # fmt: skip
    """Puts the world-model weights of a batch into it, for the policy loss `paw`. Returns metrics.

    batch         a `DataProto` after the advantages are computed, with `responses` and `response_mask` [B, T],
                  `attention_mask` [B, P + T], `token_level_scores` [B, T], `entropys` [B, T] (where the selection is by
                  entropy: those of the policy before the update) and, in `non_tensor_batch`, `uid` [B], the groups
    seed          for the selection `random`
    num_updates   number of optimizer steps that the batch is split into (`ppo_mini_batch_size`): each is weighed by its
                  share, as the steps are made up in verl's workers
    sampled_mask  [B, T] of the sampled tokens, where `response_mask` was changed since (rejection of responses)

    Writes `rollout_is_weights` [B, T]: on sampled tokens what it was, or 1; on the observation tokens of the selected
    transitions `lambda_g / N_WM`. Raises `UserError` for a batch without what is needed, and for a sampling temperature
    other than 1, at which verl's log-probs are not those of the world model.
    """
    tensors, mask = batch.batch, batch.batch["response_mask"]
    temperature = float(batch.meta_info.get("temperature", 1.0))
    entropies = next((tensors[name] for name in ("entropys", "entropy") if name in tensors), None)
    scores = next((tensors[name] for name in ("token_level_scores", "rm_scores") if name in tensors), None)
    missing = [
        name for name, value in (("token_level_scores", scores), ("uid", batch.non_tensor_batch.get("uid")))
        if value is None
    ]  # fmt: skip
    if missing:
        raise UserError(f"add_world_model: the batch has no {' and no '.join(missing)}")
    width = mask.shape[1]
    weights, metrics = world_model_weights(
        mask if sampled_mask is None else sampled_mask, tensors["attention_mask"][:, -width:], entropies, scores,
        batch.non_tensor_batch["uid"], paw, seed, num_updates, temperature, _token_ids(tensors),
    )  # fmt: skip
    own = tensors[WEIGHTS] if WEIGHTS in tensors else torch.ones_like(weights)
    tensors[WEIGHTS] = torch.where(mask.bool(), own.to(weights.dtype), weights)
    return metrics


def _token_ids(tensors: Any) -> list[tuple[list[int], list[int]]] | None:
    """Prompt and response of each row, with padding, for `PawConfig.deduplicate`."""
    if "prompts" not in tensors or "responses" not in tensors:
        return None
    return list(zip(tensors["prompts"].tolist(), tensors["responses"].tolist(), strict=True))


def world_model_weights(
    sampled: Tensor, valid: Tensor, entropies: Tensor | None, scores: Any, groups: Sequence[Any], paw: PawConfig,
    seed: Sequence[int] = (0,), num_updates: int = 1, temperature: float = 1.0,
    tokens: Sequence[tuple[list[int], list[int]]] | None = None,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """Returns the weight [B, T] of each observation token in the world-model loss, 0 elsewhere, and metrics.

    sampled    [B, T]: 1 on the tokens that the policy sampled
    valid      [B, T]: 1 on all tokens but padding
    entropies  [B, T] of the policy before the update, nats; None unless the selection is by entropy
    scores     [B, T]: a response's return is their sum
    groups     [B] of any values: responses with the same one are of one task
    tokens     [B] of (prompt, response), for `PawConfig.deduplicate`

    Responses without a sampled token belong to no group. See `add_world_model` for the others.
    """
    if temperature != 1.0 and paw.enabled:
        raise UserError(
            f"the sampling temperature is {temperature:g}, at which verl computes all log-probs; the world model's are "
            "those at 1: set actor_rollout_ref.rollout.temperature=1.0, or PawConfig(enabled=False)"
        )
    by_entropy = paw.selection in ("entropy", "lowest")
    if entropies is None and by_entropy and paw.enabled:
        raise UserError(
            f"the batch has no entropies, which the selection {paw.selection!r} needs: keep those of old_log_probs "
            "(without rollout_correction.bypass_mode), or use PawConfig(selection='all')"
        )
    weights = torch.zeros(sampled.shape, dtype=torch.float32, device=sampled.device)
    if not paw.enabled:
        return weights, {}
    turns = [
        (row, start, end, last)
        for row, (marks, length) in enumerate(zip(sampled.bool().tolist(), valid.sum(1).tolist(), strict=True))
        for start, end, last in find_turns(marks[: int(length)])
    ]
    has_target = np.array([last > end for _, _, end, last in turns], dtype=bool)
    means = np.zeros(len(turns))
    if entropies is not None:
        host = entropies.detach().double().cpu()
        means = np.array([float(host[row, start:end].mean()) for row, start, end, _ in turns])
    if paw.deduplicate and tokens is None:
        raise UserError("PawConfig(deduplicate=True) needs the prompts and responses of the batch")
    described = [_describe(tokens[row], *turn) for row, *turn in turns] if paw.deduplicate and tokens else []
    selected = select(means, has_target, paw, seed, described)
    lambdas = _lambdas(sampled, scores, groups, paw)
    num_tokens = sum(last - end for (_, _, end, last), used in zip(turns, selected, strict=True) if used)
    for (row, _, end, last), used in zip(turns, selected, strict=True):
        if used:
            weights[row, end:last] = float(lambdas[row]) * num_updates / num_tokens
    return weights, {
        "wm/lambda_mean": float(lambdas.mean()) if len(lambdas) else 0.0,
        "wm/target_share": float(has_target.mean()) if len(turns) else 0.0,
        "wm/selected_share": float(selected.sum() / max(1, has_target.sum())),
        "wm/num_tokens": float(num_tokens),
    }


def _describe(tokens: tuple[list[int], list[int]], start: int, end: int, last: int) -> Transition:
    prompt, response = tokens
    return Transition(
        (*prompt, *response[:start]), tuple(response[start:end]), (), tuple(response[end:last]), (True,) * (last - end),
        command="", observation_text="", anchor_obs="", reward=0.0, valid=True,
    )  # fmt: skip


def _lambdas(sampled: Tensor, scores: Tensor, groups: Sequence[Any], paw: PawConfig) -> np.ndarray:
    """World-model weight [B] of each response, by the mean return of its group; 0 for one without a sampled token."""
    counted = sampled.bool().any(1).cpu().numpy()
    numbers = np.unique(np.array([str(one) for one in groups]), return_inverse=True)[1]
    lambdas = np.zeros(len(counted))
    if counted.any():
        returns = scores.detach().double().sum(1).cpu().numpy()
        lambdas[counted] = group_lambdas(
            returns[counted], numbers[counted], paw.success_reward, paw.lambda_0, paw.balance
        )
    return lambdas
