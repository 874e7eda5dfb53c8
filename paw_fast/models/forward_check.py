"""Checks at start-up that a model's packed forward pass agrees with its standard forward pass.

Two sequences of 64 tokens in total are packed. Their log-probs must equal those of the eager attention of the model on
each sequence alone. Without this check, a feature that the packed pass does not implement (a sliding window, a bias, a
layer other than attention) would silently give wrong results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from paw_fast.errors import UserError
from paw_fast.models.packed_attention import ATTENTION_NAME, AttentionParams, PackedPlan, SlotCache, SlotPlan

LENGTHS = (17, 47)
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
"""Maximum mean absolute difference of the log-probs, in nats. For SmolLM2-135M the difference is 5e-6 in float32, 0.009
in float16 and 0.07 in bfloat16, which has 8 bits of precision."""
MOE_FACTORS = {torch.float64: 50, torch.float32: 50, torch.float16: 4, torch.bfloat16: 2}
"""Factors on `TOLERANCES` for mixtures of experts, in which rounding can route a token to another expert."""
_STATEFUL = re.compile(
    r"Mixer$|DeltaNet|R[Ww][Kk][Vv]|xLSTM|ShortConv|LinearAttention|LightningAttention|RecurrentBlock"
)
"""Class names of layers that pass a state from token to token, besides attention."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class PackedModel(Protocol):
    """The parts of a `Policy` that the checks use."""

    model: Any
    tokenizer: Any

    def logits(self, input_ids: Tensor, position_ids: Tensor, plan: Any) -> Tensor:
        """Logits [T, V] of packed tokens [T] under an attention plan."""
        ...


def reject_stateful(model: Any) -> None:
    """Raises `UserError` for models with layers that pass a state from token to token, besides attention."""
    found = sorted({type(module).__name__ for module in model.modules() if _STATEFUL.search(type(module).__name__)})
    if found:
        raise UserError(
            f"models of type {model.config.model_type} are not supported: {', '.join(found)} passes a state from token "
            "to token, so packed sequences would affect each other"
        )


def check_forward(policy: PackedModel, name: str) -> float:
    """Compares the packed with the standard forward pass. Returns the mean absolute difference in nats per token.

    Weights, attention implementation and random states are unchanged afterwards. Raises `UserError`, which names the
    model, if the difference exceeds the tolerance or a forward pass fails.
    """
    model = policy.model
    about = f"--model {name} ({model.config.model_type})"
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"{about}: encoder-decoder models are not supported; use a causal LM")
    if model.get_output_embeddings() is None:
        raise UserError(f"{about}: the model has no output embeddings; use a causal LM")
    sequences = _sequences(policy)
    with _no_side_effects(model):
        got = _run(about, "the packed", lambda: _packed_logprobs(policy, sequences))
        try:
            model.set_attn_implementation("eager")
            logits = lambda ids: model(input_ids=ids[None], use_cache=False).logits[0]  # noqa: E731
            want = _run(about, "standard", lambda: torch.cat([_next_logprobs(logits(ids), ids) for ids in sequences]))
        finally:
            model.set_attn_implementation(ATTENTION_NAME)
    if not bool(torch.isfinite(want).all()):
        raise UserError(f"{about}: its log-probs are not finite; the weights are damaged")
    return _compare(got, want, model, f"{about}: the packed forward pass", "the standard one")


def check_generation(policy: PackedModel, name: str) -> float:
    """Compares generation from cached keys and values with the packed forward pass. Returns and raises as above.

    Covers prompts, single tokens and later turns of an episode.
    """
    model = policy.model
    about = f"--model {name} ({model.config.model_type})"
    sequences = _sequences(policy)
    with _no_side_effects(model):
        want = _run(about, "the packed", lambda: _packed_logprobs(policy, sequences))
        got = _run(about, "the cached", lambda: _cached_logprobs(policy, sequences))
    return _compare(got, want, model, f"{about}: generation from cached keys and values", "the packed forward pass")


def _compare(got: Tensor, want: Tensor, model: Any, what: str, against: str) -> float:
    differences = (got - want).abs()
    mean, largest = float(differences.mean()), float(differences.max())
    tolerance = tolerance_of(model)
    if not mean <= tolerance:  # also True for NaN
        raise UserError(
            f"{what} differs from {against} by {mean:.2g} nats per token (maximum {largest:.2g}, tolerance "
            f"{tolerance:g} in {str(model.dtype).removeprefix('torch.')}): this model is not supported"
        )
    return mean


def tolerance_of(model: Any) -> float:
    """Returns the tolerance for a model: the maximum mean difference of its log-probs, in nats per token."""
    return TOLERANCES[model.dtype] * (MOE_FACTORS[model.dtype] if has_experts(model) else 1)


def has_experts(model: Any) -> bool:
    """Whether a model is a mixture of experts."""
    config = model.config.get_text_config()
    return any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS)


def _sequences(policy: PackedModel) -> list[Tensor]:
    """Returns two fixed sequences of ordinary tokens, truncated if the model supports fewer positions."""
    model, tokenizer = policy.model, policy.tokenizer
    size = model.get_output_embeddings().weight.shape[0]
    special = set(tokenizer.all_special_ids) if tokenizer is not None else set()
    ordinary = [i for i in range(min(size, len(tokenizer)) if tokenizer is not None else size) if i not in special]
    draws = torch.randint(len(ordinary), (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([ordinary[i] for i in draws.tolist()], device=next(model.parameters()).device)
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max(LENGTHS)
    return [part[:most] for part in ids.split(LENGTHS)]


@contextmanager
def _no_side_effects(model: Any) -> Iterator[None]:
    """Disables gradients, and restores the random states afterwards."""
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _run(about: str, which: str, compute: Callable[[], Tensor]) -> Tensor:
    """Runs `compute` and turns any error of the model's code into a one-line `UserError`."""
    try:
        return compute()
    except UserError as error:
        raise UserError(f"{about}: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        first = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        raise UserError(f"{about}: {which} forward pass fails: {first}; this model is not supported") from error


def _next_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Returns the log-probs [n - 1] of all tokens after the first. logits: [n, V], ids: [n]."""
    logprobs = torch.log_softmax(logits[:-1].to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return logprobs.gather(1, ids[1:, None])[:, 0]


class _Recorder(PackedPlan):
    """A packed plan that records the indices of the layers that used it."""

    def __init__(self, lengths: tuple[int, ...]):
        super().__init__(lengths)
        object.__setattr__(self, "layers", [])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        self.layers.append(layer)  # type: ignore[attr-defined]
        return super().attend(layer, q, k, v, params)


def _packed_logprobs(policy: PackedModel, sequences: Sequence[Tensor]) -> Tensor:
    plan = _Recorder(tuple(len(ids) for ids in sequences))
    positions = torch.cat([torch.arange(len(ids), device=ids.device) for ids in sequences])
    ran: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, _: ran.append(type(m).__name__))
        for module in policy.model.modules()
        if isinstance(module, torch.nn.Conv1d)
    ]
    try:
        logits = policy.logits(torch.cat(list(sequences)), positions, plan)
    finally:
        for hook in hooks:
            hook.remove()
    _check_layers(policy.model, plan.layers, ran)  # type: ignore[attr-defined]
    parts = logits.split(plan.lengths)
    return torch.cat([_next_logprobs(part, ids) for part, ids in zip(parts, sequences, strict=True)])


def _check_layers(model: Any, used: Sequence[int], stateful: Sequence[str]) -> None:
    """Raises `UserError` unless every layer used the plan exactly once: other layers ignore sequence boundaries."""
    config = model.config.get_text_config()
    left_out = sorted(set(range(config.num_hidden_layers)) - set(used))
    if stateful or left_out:
        kinds = getattr(config, "layer_types", None) or []
        types = sorted({kinds[i] for i in left_out if i < len(kinds)} | set(stateful))
        which = f"layers {', '.join(map(str, left_out))}" if left_out else "some layers"
        raise UserError(
            f"{which}{' (' + ', '.join(types) + ')' if types else ''} of {config.num_hidden_layers} do not only use "
            "the attention interface of transformers, so packed sequences would affect each other: not supported"
        )
    if repeated := sorted({i for i in used if used.count(i) > 1}):
        raise UserError(f"layer {repeated[0]} runs more than once in a forward pass: not supported")


def _cached_logprobs(policy: PackedModel, sequences: Sequence[Tensor]) -> Tensor:
    """Returns the log-probs computed with the cache in three passes.

    The passes feed most of both prompts, then a single token of each, then the rest of the second.
    """
    first, second = sequences
    cache = SlotCache(2, max(len(ids) for ids in sequences))
    cuts = (len(first) - 1, len(second) // 2)
    rows: list[list[Tensor]] = [[], []]
    steps = [
        [(0, 0, cuts[0]), (1, 0, cuts[1])],
        [(0, cuts[0], cuts[0] + 1), (1, cuts[1], cuts[1] + 1)],
        [(1, cuts[1] + 1, len(second))],
    ]
    for parts in steps:
        parts = [(slot, start, end) for slot, start, end in parts if end > start]
        parts.sort(key=lambda part: part[2] - part[1] > 1)
        lengths = [end - start for _, start, end in parts]
        plan = SlotPlan.make(cache, [p[0] for p in parts], [p[1] for p in parts], lengths, first.device)
        ids = torch.cat([sequences[slot][start:end] for slot, start, end in parts])
        logits = policy.logits(ids, plan.token_positions, plan).split(lengths)
        for (slot, _, _), part in zip(parts, logits, strict=True):
            rows[slot].append(part)
    return torch.cat([_next_logprobs(torch.cat(part), ids) for part, ids in zip(rows, sequences, strict=True)])
