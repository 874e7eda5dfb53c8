"""Faults inside the process of a training run: numbers that are not finite, memory that runs out, an environment that
fails. Each function takes a random generator, patches the package, and returns what it will do and when.

They are called in the child process of a trial (`fault_trials.Laboratory.run`), before its command line runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any


def at_call(home: Any, name: str, number: int, action: Callable[..., Any]) -> None:
    """Replaces the function `name` of `home`: at its call `number` (from 1), `action(original, *args)` is called in
    its place."""
    original, calls = getattr(home, name), []

    def wrapper(*args: Any, **more: Any) -> Any:
        calls.append(name)
        return action(original, *args, **more) if len(calls) == number else original(*args, **more)

    setattr(home, name, wrapper)


def nan_in_gradient(rng: random.Random) -> str:
    """A gradient of one parameter has a NaN, in one of the run's micro-batches."""
    from paw_fast.learner import learner

    number = rng.randrange(1, 7)

    def action(original: Callable[..., Any], policy: Any, *args: Any, **more: Any) -> Any:
        result = original(policy, *args, **more)
        gradients = [p.grad for p in policy.model.parameters() if p.grad is not None]
        gradients[rng.randrange(len(gradients))].view(-1)[0] = float("nan")
        return result

    at_call(learner, "backward", number, action)
    return f"micro-batch {number}"


def nan_in_weights(rng: random.Random) -> str:
    """A weight becomes NaN before an update."""
    import torch

    from paw_fast.learner import Learner

    number = rng.randrange(1, 4)

    def action(original: Callable[..., Any], self: Any, *args: Any, **more: Any) -> Any:
        parameters = list(self.policy.model.parameters())
        with torch.no_grad():
            parameters[rng.randrange(len(parameters))].view(-1)[0] = float("nan")
        return original(self, *args, **more)

    at_call(Learner, "update", number, action)
    return f"update {number}"


def nan_in_logits(rng: random.Random) -> str:
    """The LM head returns a NaN once, while actions are sampled or token statistics are computed."""
    import torch

    number, linear = rng.randrange(1, 120), torch.nn.Linear.forward
    calls: list[int] = []

    def forward(self: Any, x: Any) -> Any:
        out = linear(self, x)
        if self.out_features > 300:  # the head: the model's other layers are narrower
            calls.append(1)
            if len(calls) == number:
                out = out.clone()
                out.view(-1)[0] = float("nan")
        return out

    torch.nn.Linear.forward = forward  # type: ignore[method-assign]
    return f"call {number} of the LM head"


def nan_in_reward(rng: random.Random) -> str:
    """The environment returns a reward that is not finite once."""
    import dataclasses

    from paw_fast.envs.alfworld.env import AlfworldEnv

    number, value = rng.randrange(1, 30), rng.choice((float("nan"), float("inf")))

    def action(original: Callable[..., Any], *args: Any, **more: Any) -> Any:
        result = original(*args, **more)
        return dataclasses.replace(result, reward=value)

    at_call(AlfworldEnv, "step", number, action)
    return f"{value} in step {number}"


def environment_fails(rng: random.Random) -> str:
    """The environment's step raises an exception once."""
    from paw_fast.envs.alfworld.env import AlfworldEnv

    number = rng.randrange(1, 30)

    def action(original: Callable[..., Any], *args: Any, **more: Any) -> Any:
        raise ConnectionResetError("injected: the environment's server has gone")

    at_call(AlfworldEnv, "step", number, action)
    return f"step {number}"


def out_of_memory(rng: random.Random) -> str:
    """An allocation fails once in a forward and backward pass or in computing the token statistics."""
    import torch

    from paw_fast.learner import learner

    name = rng.choice(("backward", "compute_token_stats"))
    number, message = rng.randrange(1, 7), "CUDA out of memory. Tried to allocate 2.00 GiB. (injected)"
    error = rng.choice((torch.OutOfMemoryError(message), MemoryError("injected")))

    def action(original: Callable[..., Any], *args: Any, **more: Any) -> Any:
        original(*args, **more)  # half-done work must not count
        raise error

    at_call(learner, name, number, action)
    return f"{type(error).__name__} in call {number} of {name}"
