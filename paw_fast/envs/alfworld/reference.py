"""The reference engine (`alfworld` on `textworld`) behind the `Env` protocol."""

from __future__ import annotations

from paw_fast.types import UserError

from .games import reference_texts


class ReferenceEnv:
    """Placeholder until the worker processes stand."""

    name = "alfworld"

    def __init__(self, games, max_steps: int = 50) -> None:
        if reference_texts() is None:
            raise UserError("the reference engine is not installed: pip install 'paw-fast[alfworld]'")
        raise UserError("the reference engine is not wired up yet")
