"""Defines the interface between the agent loop and the engines, in token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from paw_fast.rollout.chat_format import ChatFormat


@dataclass(frozen=True)
class ActionRequest:
    """A request to sample one action. Produced by the agent loop, consumed by an engine.

    episode: identifies the episode, whose cached keys and values can be reused.
    prompt_ids: all tokens of the prompt.
    seed: determines the sampling, independently of other requests in the batch.
    max_tokens: the action is cut after this many tokens.
    stop: texts that end the action, in addition to the end tokens.

    >>> ActionRequest(episode=3, prompt_ids=[1, 2, 3], seed=(0, 7, 3, 0), max_tokens=16, temperature=1.0).episode
    3
    """

    episode: int
    prompt_ids: list[int]
    seed: tuple[int, ...]
    max_tokens: int
    temperature: float
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A sampled action. Produced by an engine, consumed by the agent loop.

    action_ids: [A] the sampled tokens, including a sampled end token.
    logprobs: [A] their log-probs at the temperature of the request. Ids without a token in the tokenizer are never
        sampled, but the transformers engine includes them in the softmax, as the trainer does.
    stopped: False if the action was cut at `max_tokens`.
    policy_versions: [A] version of the weights with which each token was sampled.

    >>> Completion(3, (5, 2), (-0.1, -0.01), True, (0, 0)).action_ids
    (5, 2)
    """

    episode: int
    action_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    policy_versions: tuple[int, ...]


def unknown_ids(tokenizer: Any, size: int) -> list[int]:
    """Returns the ids below `size` without a token in the tokenizer: padding of the vocabulary, and gaps in it.

    >>> class Two:
    ...     def get_vocab(self):
    ...         return {"a": 0, "b": 2}
    >>> unknown_ids(Two(), 4)
    [1, 3]
    """
    known = set(tokenizer.get_vocab().values())
    return [i for i in range(size) if i not in known]


class EngineError(RuntimeError):
    """An engine failed: it died, hangs or uses stale state. The message says what was waited for."""


class RolloutEngine(Protocol):
    """Samples actions for many episodes. An episode holds resources from its first request until `release`."""

    policy_version: int
    chat: ChatFormat

    def submit(self, request: ActionRequest) -> None:
        """Queues a request. Each episode can have one request in flight. Raises `ValueError` if it is too long."""
        ...

    def step(self) -> list[Completion]:
        """Advances the requests in flight and returns those that are completed."""
        ...

    def release(self, episode: int) -> None:
        """Frees the resources of an episode and drops its request in flight, if any."""
        ...

    def close(self) -> None:
        """Frees memory and processes. Safe to call twice."""
        ...

    def sleep(self) -> None:
        """Frees GPU memory until the next `update_weights`, if the engine can. Requests are kept, and none advances."""
        ...

    def update_weights(self, policy_version: int) -> None:
        """Switches to the updated weights and discards everything computed with older ones.

        An engine that does not share the policy's tensors reads them from its weight source. Requests in flight
        continue with the new weights; `Completion.policy_versions` records the version of each token.
        """
        ...
