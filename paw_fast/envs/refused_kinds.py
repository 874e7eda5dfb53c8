"""Refuses kinds of environments that users may expect, with what to do in their place."""

from __future__ import annotations

from paw_fast.envs.base import EnvSpec
from paw_fast.errors import UserError


def verifiers(name: str) -> EnvSpec:
    """Raises the `UserError` of `--env verifiers:NAME`."""
    raise UserError(
        f"--env verifiers:{name}: environments of verifiers are not supported: they run the agent's program themselves "
        "and call the model over an API, where paw-fast asks the environment for each observation; wrap the taskset "
        "in a class of your own (docs/howto/add_env.md), or serve it with OpenEnv and give --env openenv:URL"
    )
