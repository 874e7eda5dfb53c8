"""Continuous batching on a Hugging Face model in this process: the generator that needs no extra.

Each step runs the model once over one packed row: the unread part of every new prompt, and one token of every
action that is being written. Keys and values stay in an episode's slot between its turns, so a turn reads only
what the environment added; an episode that has ended costs nothing.
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
"""Prompt tokens that one step reads at most (one prompt may be longer)."""


@dataclass
class _Running:
    request: ActionRequest
    slot: int
    draws: np.random.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


class TransformersEngine:
    """Samples actions with `model` (on the `paw_packed` attention). See `RolloutEngine` for the methods.

    slots: episodes that are in flight at once; more wait. max_length: tokens a slot can hold. source: where new
    weights come from; None where `model` is the policy itself.
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
                f"prompt of {len(request.prompt_ids)} tokens and an action of up to {request.max_tokens} "
                f"pass the {self.cache.max_length} tokens of a slot"
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
            self._free.sort(reverse=True)  # low slots first: a decode step reads rows 0 to the highest in use

    def update_weights(self, policy_version: int) -> None:
        if self.source is not None:
            mine = named_weights(self.model)
            with torch.no_grad():
                for name, tensor in self.source.tensors(policy_version):
                    mine[name].copy_(tensor)
        self.policy_version = policy_version
        self._cached = [[] for _ in self._cached]

    def close(self) -> None:
        """Nothing to give back: the cache goes with the object."""

    def _admit(self) -> None:
        budget = PREFILL_TOKENS
        while self._waiting and budget > 0:
            request = self._waiting[0]
            slot = self._slot_of.get(request.episode)
            if slot is None:
                if not self._free:
                    # An episode between turns keeps its slot and may be behind this one in the queue.
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
        """Keeps of the slot's tokens what the prompt starts with; at least one token is left to be read."""
        cached = self._cached[slot]
        same = min(len(cached), len(prompt) - 1)
        if cached[:same] != prompt[:same]:
            same = next(i for i in range(same) if cached[i] != prompt[i])
        del cached[same:]

    def check(self) -> None:
        """Compares generation from the cache with the packed forward pass. Raises `UserError` where they differ."""
        name = getattr(self.model.config, "name_or_path", "") or "of this generator"
        check_generation(Policy(self.model, self.chat.tokenizer), name)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        self._admit()
        if not self._running:
            return []
        fed = []
        for run in self._running.values():
            start = len(self._cached[run.slot])
            unread = len(run.request.prompt_ids) + len(run.ids) - start
            # All but the last token are unread again when the weights changed in mid-action.
            new = run.ids[-1:] if unread == 1 and run.ids else (run.request.prompt_ids + run.ids)[start:]
            fed.append((run, start, new))
        fed.sort(key=lambda item: len(item[2]) > 1)  # single tokens first, as SlotPlan wants them
        runs = [run for run, _, _ in fed]
        lengths = [len(new) for _, _, new in fed]
        plan = SlotPlan.make(self.cache, [r.slot for r in runs], [start for _, start, _ in fed], lengths, self.device)
        ids = torch.tensor([[i for _, _, new in fed for i in new]], device=self.device)
        hidden = self.model.base_model(
            input_ids=ids, position_ids=plan.token_positions[None], paw_plan=plan, use_cache=False
        ).last_hidden_state[0]
        last = torch.tensor(np.cumsum(lengths) - 1, device=self.device)
        logits = map_logits(self.model, self.model.get_output_embeddings()(hidden[last])).float()
        for run, _, new in fed:
            self._cached[run.slot].extend(new)
        tokens, logprobs = self._sample(logits, runs)
        done = []
        for run, token, logprob in zip(runs, tokens, logprobs, strict=True):
            run.ids.append(token)
            run.logprobs.append(logprob)
            run.versions.append(self.policy_version)
            stopped = self.chat.ended(run.ids, run.request.stop)
            if stopped or len(run.ids) >= run.request.max_tokens:
                del self._running[run.request.episode]
                done.append(
                    Completion(
                        run.request.episode, tuple(run.ids), tuple(run.logprobs), stopped, tuple(run.versions)
                    )
                )  # fmt: skip
        return done

    def _sample(self, logits: torch.Tensor, runs: list[_Running]) -> tuple[list[int], list[float]]:
        """Inverse-CDF sampling, a draw of the episode's own generator per token: order in the batch plays no part.

        Ids that the tokenizer does not know are never drawn. Their probability stays in the log-probs: the trainer's
        softmax is over the whole vocabulary too, and the two must agree.
        """
        temperatures = torch.tensor([[r.request.temperature] for r in runs], device=self.device)
        logprobs = torch.log_softmax(logits / temperatures, -1)
        draws = torch.tensor([[r.draws.random()] for r in runs], dtype=torch.float64, device=self.device)
        probabilities = logprobs.double().exp()
        probabilities[:, self._unknown] = 0.0
        cdf = probabilities.cumsum(-1)
        # A token of probability zero adds nothing to the sum, so the first to pass a point below the total is none.
        total = cdf[:, -1:]
        points = torch.minimum(draws * total, total.nextafter(torch.zeros_like(total)))
        tokens = (cdf <= points).sum(-1)
        return tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist()
