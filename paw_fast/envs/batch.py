"""Steps many episodes with one call."""

from __future__ import annotations

from collections.abc import Sequence

from paw_fast.envs.base import Env, StepResult
from paw_fast.types import Observation, Task


class BatchEnv:
    """`num` episode slots over one environment's data.

    A slot whose command is None is idle, and one whose episode is over stays so until the next `reset`, whatever its
    command; both cost nothing.

    All slots begin before the first finishes, so that environments in processes of their own work at the same time;
    the answers do not depend on which of them is quicker.
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
        """Carries out one command in each slot that has one and whose episode goes on; the others answer None.

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
    """`num` slots over the data of `env`, which itself stays free. Raises `ValueError` for num below 1."""
    if num < 1:
        raise ValueError(f"{num} slots asked for, expected at least 1")
    return BatchEnv([env.spawn() for _ in range(num)])
