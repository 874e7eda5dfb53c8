"""Runs many episodes with one call per step."""

from __future__ import annotations

from collections.abc import Sequence

from paw_fast.envs.base import Env, StepResult
from paw_fast.types import Observation, Task


class BatchEnv:
    """`num` episode slots over one environment's data.

    A slot is idle if its command is None, or if its episode is over, until the next `reset`. Idle slots cost nothing.

    All slots begin a step before the first finishes it, so that environments in separate processes run concurrently.
    The results do not depend on their order of completion.
    """

    def __init__(self, envs: Sequence[Env]) -> None:
        self._envs = list(envs)
        self._over = [False] * len(self._envs)

    def __len__(self) -> int:
        return len(self._envs)

    def reset(self, tasks: Sequence[Task]) -> list[Observation]:
        """Starts an episode in the first len(tasks) slots. Raises `ValueError` for more tasks than slots."""
        if len(tasks) > len(self._envs):
            raise ValueError(f"{len(tasks)} tasks for {len(self._envs)} slots: make the batch larger")
        envs = self._envs[: len(tasks)]
        self._over[: len(tasks)] = [False] * len(tasks)
        for env, task in zip(envs, tasks, strict=True):
            env.begin_reset(task)
        return [env.finish_reset() for env in envs]

    def step(self, commands: Sequence[str | None]) -> list[StepResult | None]:
        """Executes a command in each slot that has one and whose episode is running; returns None for the others.

        Raises `ValueError` for more commands than slots.
        """
        if len(commands) > len(self._envs):
            raise ValueError(f"{len(commands)} commands for {len(self._envs)} slots")
        pairs = [
            (env, None if over else command)
            for env, command, over in zip(self._envs, commands, self._over, strict=False)
        ]
        for env, command in pairs:
            if command is not None:
                env.begin_step(command)
        steps = [None if command is None else env.finish_step() for env, command in pairs]
        for i, step in enumerate(steps):
            if step is not None:
                self._over[i] = step.done
        return steps

    def close(self) -> None:
        """Closes every slot."""
        for env in self._envs:
            env.close()


def make_batch(env: Env, num: int) -> BatchEnv:
    """Creates `num` slots over the data of `env`, which is not itself a slot. Raises `ValueError` for num below 1."""
    if num < 1:
        raise ValueError(f"{num} slots asked for, expected at least 1")
    return BatchEnv([env.spawn() for _ in range(num)])
