"""What every generator offers to the agent loop: token ids in, token ids out, episodes at their own pace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from paw_fast.rollout.chat_format import ChatFormat


@dataclass(frozen=True)
class ActionRequest:
    """One action to be sampled. Produced by the agent loop, consumed by an engine.

    `episode` names the episode whose keys and values may be reused; `seed` decides the sampling, whatever else
    is in the batch.

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

    `logprobs` are those of the model's distribution (temperature applied). Ids that the tokenizer does not know are not
    sampled, but the transformers engine leaves their probability in the softmax, as the trainer does. `stopped` is
    False when the action was cut at `max_tokens`; `policy_versions` says for each token which weights it was sampled
    with.

    >>> Completion(3, (5, 2), (-0.1, -0.01), True, (0, 0)).action_ids
    (5, 2)
    """

    episode: int
    action_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    policy_versions: tuple[int, ...]


def unknown_ids(tokenizer: Any, size: int) -> list[int]:
    """Rows of a model's vocabulary of `size` that no token of the tokenizer has: padding, and holes between tokens.

    >>> class Two:
    ...     def get_vocab(self):
    ...         return {"a": 0, "b": 2}
    >>> unknown_ids(Two(), 4)
    [1, 3]
    """
    known = set(tokenizer.get_vocab().values())
    return [i for i in range(size) if i not in known]


class EngineError(RuntimeError):
    """A generator failed: it died, hangs, or was found to use stale state. The message says what was waited for."""


class RolloutEngine(Protocol):
    """A generator. An episode holds resources from its first request until `release`."""

    policy_version: int
    chat: ChatFormat

    def submit(self, request: ActionRequest) -> None:
        """Queues an action; an episode has at most one in flight."""
        ...

    def step(self) -> list[Completion]:
        """Advances what is in flight and returns the actions that ended; empty when nothing did."""
        ...

    def release(self, episode: int) -> None:
        """The episode is over: what was kept for it goes, and so does an action in flight."""
        ...

    def close(self) -> None:
        """Gives back what it holds (memory, processes). Safe to call twice."""
        ...

    def update_weights(self, policy_version: int) -> None:
        """The policy was updated: nothing computed with older weights may be used again.

        An engine that does not share the policy's tensors reads them from its weight source. Actions that are in
        flight go on, token by token under the new weights, and are stamped accordingly.
        """
        ...
