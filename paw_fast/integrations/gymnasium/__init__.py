"""Registers the environments with gymnasium: importing this module adds `paw_fast/ALFWorld-v0` and others.

    import gymnasium
    import paw_fast.integrations.gymnasium

    env = gymnasium.make("paw_fast/ALFWorld-v0", split="unseen")
    text, info = env.reset(seed=0)
    text, reward, terminated, truncated, info = env.step(info["admissible_commands"][0])

Observations and actions are texts. Needs gymnasium.
"""

from typing import Any

from paw_fast import registry
from paw_fast.extras import install_hint

try:
    import gymnasium as _gymnasium
except ModuleNotFoundError as e:
    if e.name != "gymnasium":
        raise
    message = f"paw_fast.integrations.gymnasium needs gymnasium: {install_hint('gymnasium')}"
    raise ModuleNotFoundError(message, name="gymnasium") from e

from paw_fast.integrations.gymnasium.env import AnyText, PawFastEnv

__all__ = ["AnyText", "PawFastEnv", "ids"]
_TITLES = {
    "alfworld": "ALFWorld", "webshop": "WebShop", "search": "Search", "babyai": "BabyAI",
    "scienceworld": "ScienceWorld", "textworld": "TextWorld",
}  # fmt: skip


def ids() -> dict[str, str]:
    """The id for each environment that is built in or installed, by its name in paw-fast."""
    return {name: f"paw_fast/{_TITLES.get(name, name)}-v0" for name in registry.names("environments")}


_registered: Any = _gymnasium  # pyright takes it for this package where gymnasium is not installed
for _name, _id in ids().items():
    if _id not in _registered.registry:
        _registered.register(_id, entry_point="paw_fast.integrations.gymnasium:PawFastEnv", kwargs={"name": _name})
