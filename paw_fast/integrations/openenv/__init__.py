"""Serves environments with the protocol of OpenEnv (`paw-fast serve-env`). Needs the extra `openenv`.

environment  TextAction, TextObservation, TextState and PawFastEnvironment, an OpenEnv environment over one of ours
server       the application of OpenEnv's own server library, with limits, and the server that runs it
"""

from paw_fast.extras import install_hint

try:
    import openenv as _openenv  # noqa: F401
except ModuleNotFoundError as e:
    if e.name != "openenv":
        raise
    message = f"paw_fast.integrations.openenv needs OpenEnv: {install_hint('openenv')}"
    raise ModuleNotFoundError(message, name="openenv") from e

from paw_fast.integrations.openenv.environment import (
    EnvironmentHost,
    PawFastEnvironment,
    TextAction,
    TextObservation,
    TextState,
)
from paw_fast.integrations.openenv.server import Limits, make_app, serve

__all__ = [
    "EnvironmentHost",
    "Limits",
    "PawFastEnvironment",
    "TextAction",
    "TextObservation",
    "TextState",
    "make_app",
    "serve",
]
