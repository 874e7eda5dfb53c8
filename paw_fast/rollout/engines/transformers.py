"""Continuous batching with a Hugging Face model in this process. Needs no optional dependencies.

Each step runs the model once on a packed row: the uncached part of each new prompt, and one token of each action in
flight. Keys and values stay in the episode's slot between turns, so that a turn computes only the new tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from paw_fast.models.forward_check import check_generation
from paw_fast.models.packed_attention import SlotCache, SlotPlan
from paw_fast.models.policy import Policy, disable_dropout, map_logits
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.engines.base import ActionRequest, Completion, unknown_ids
from paw_fast.rollout.weight_sync import WeightSource, named_weights

PREFILL_TOKENS = 16384
"""Maximum number of prompt tokens per step (a single prompt can be longer)."""


@dataclass
class _Running:
    request: ActionRequest
    slot: int
    draws: np.random.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class TransformersEngine:
    """Samples actions with a Hugging Face model that uses the `paw_packed` attention. See `RolloutEngine`.

    Args:
        model: the model. Its dropout is disabled.
        chat: chat format, for the end of actions.
        slots: maximum number of episodes in flight; further episodes wait.
        max_length: maximum number of tokens per episode.
        source: where to read new weights; None if `model` is the policy itself.
    """

    def __init__(
        self, model: torch.nn.Module, chat: ChatFormat, *, slots: int, max_length: int,
        source: WeightSource | None = None,
    ):  # fmt: skip
        disable_dropout(model)
        self.model: Any = model
        self.source = source
        self.chat = chat
        self.device = next(model.parameters()).device
        self.policy_version = 0
        self.cache = SlotCache(slots, max_length)
        self._unknown = torch.tensor(
            unknown_ids(chat.tokenizer, self.model.get_output_embeddings().weight.shape[0]), device=self.device,
            dtype=torch.long,
        )  # fmt: skip
        self._free = list(range(slots))[::-1]
        self._slot_of: dict[int, int] = {}
        self._cached: list[list[int]] = [[] for _ in range(slots)]
        self._waiting: deque[ActionRequest] = deque()
        self._running: dict[int, _Running] = {}

    def submit(self, request: ActionRequest) -> None:
        if len(request.prompt_ids) + request.max_tokens > self.cache.max_length:
            raise ValueError(
                f"got a prompt of {len(request.prompt_ids)} tokens and an action of up to {request.max_tokens}, "
                f"expected at most {self.cache.max_length} tokens in total"
            )
        if request.episode in self._running:
            raise ValueError(f"episode {request.episode} already has an action in flight")
        self._waiting.append(request)

    def release(self, episode: int) -> None:
        slot = self._slot_of.pop(episode, None)
        self._running.pop(episode, None)
        self._waiting = deque(r for r in self._waiting if r.episode != episode)
        if slot is not None:
            self._cached[slot] = []
            self._free.append(slot)
            self._free.sort(reverse=True)  # low slots first: decoding computes all rows up to the highest slot in use

    def sleep(self) -> None:
        """Does nothing: keys and values are kept for the turns that follow."""

    def update_weights(self, policy_version: int) -> None:
        if self.source is not None:
            weights = named_weights(self.model)
            with torch.no_grad():
                for name, tensor in self.source.tensors(policy_version):
                    weights[name].copy_(tensor)
        self.policy_version = policy_version
        self._cached = [[] for _ in self._cached]

    def close(self) -> None:
        """Does nothing: the cache is freed with this object."""

    def _admit(self) -> None:
        budget = PREFILL_TOKENS
        while self._waiting and budget > 0:
            request = self._waiting[0]
            slot = self._slot_of.get(request.episode)
            if slot is None:
                if not self._free:
                    # All slots are taken, but the next turn of an episode that has one may be behind this request.
                    later = next((r for r in self._waiting if r.episode in self._slot_of), None)
                    if later is None:
                        return
                    self._waiting.remove(later)
                    self._waiting.appendleft(later)
                    continue
                slot = self._slot_of[request.episode] = self._free.pop()
            self._waiting.popleft()
            self._keep_prefix(slot, request.prompt_ids)
            budget -= len(request.prompt_ids) - len(self._cached[slot])
            draws = np.random.Generator(np.random.Philox(np.random.SeedSequence(request.seed)))
            self._running[request.episode] = _Running(request, slot, draws)

    def _keep_prefix(self, slot: int, prompt: list[int]) -> None:
        """Keeps the cached tokens that are a prefix of the prompt, except for at least one last token to compute."""
        cached = self._cached[slot]
        same = min(len(cached), len(prompt) - 1)
        if cached[:same] != prompt[:same]:
            same = next(i for i in range(same) if cached[i] != prompt[i])
        del cached[same:]

    def check(self) -> None:
        """Compares generation from the cache with the packed forward pass. Raises `UserError` if they differ."""
        name = getattr(self.model.config, "name_or_path", "") or "of this engine"
        check_generation(Policy(self.model, self.chat.tokenizer), name)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        self._admit()
        if not self._running:
            return []
        inputs = []
        for run in self._running.values():
            start = len(self._cached[run.slot])
            uncached = len(run.request.prompt_ids) + len(run.ids) - start
            # After an update of the weights during an action, all of its tokens are uncached again.
            new = run.ids[-1:] if uncached == 1 and run.ids else (run.request.prompt_ids + run.ids)[start:]
            inputs.append((run, start, new))
        inputs.sort(key=lambda item: len(item[2]) > 1)  # single tokens first, as SlotPlan requires
        runs = [run for run, _, _ in inputs]
        lengths = [len(new) for _, _, new in inputs]
        starts = [start for _, start, _ in inputs]
        plan = SlotPlan.make(self.cache, [r.slot for r in runs], starts, lengths, self.device)
        ids = torch.tensor([[i for _, _, new in inputs for i in new]], device=self.device)
        hidden = self.model.base_model(
            input_ids=ids, position_ids=plan.token_positions[None], paw_plan=plan, use_cache=False
        ).last_hidden_state[0]
        last = torch.tensor(np.cumsum(lengths) - 1, device=self.device)
        logits = map_logits(self.model, self.model.get_output_embeddings()(hidden[last])).float()
        for run, _, new in inputs:
            self._cached[run.slot].extend(new)
        tokens, logprobs = self._sample(logits, runs)
        done = []
        for run, token, logprob in zip(runs, tokens, logprobs, strict=True):
            run.ids.append(token)
            run.logprobs.append(logprob)
            run.versions.append(self.policy_version)
            stopped = self.chat.ends_action(run.ids, run.request.stop)
            if stopped or len(run.ids) >= run.request.max_tokens:
                del self._running[run.request.episode]
                done.append(
                    Completion(
                        run.request.episode, tuple(run.ids), tuple(run.logprobs), stopped, tuple(run.versions)
                    )
                )  # fmt: skip
        return done

    def _sample(self, logits: torch.Tensor, runs: list[_Running]) -> tuple[list[int], list[float]]:
        """Samples one token per request by inversion of the CDF, with a random generator per request.

        The result does not depend on the order of the batch. logits: [R, V]. Returns R tokens and their log-probs. Ids
        without a token in the tokenizer are never sampled, but the softmax includes them, as in the trainer.
        """
        temperatures = torch.tensor([[r.request.temperature] for r in runs], device=self.device)
        logprobs = torch.log_softmax(logits / temperatures, -1)
        draws = torch.tensor([[r.draws.random()] for r in runs], dtype=torch.float64, device=self.device)
        probabilities = logprobs.double().exp()
        probabilities[:, self._unknown] = 0.0
        cdf = probabilities.cumsum(-1)
        # Tokens of probability 0 do not increase the CDF, so the first to exceed a point below the total is none.
        total = cdf[:, -1:]
        points = torch.minimum(draws * total, total.nextafter(torch.zeros_like(total)))
        tokens = (cdf <= points).sum(-1)
        return tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist()
