"""Names the services that metrics can be sent to."""

from __future__ import annotations

import difflib

from paw_fast.errors import UserError

SERVICES = ("tensorboard", "wandb", "trackio")


def log_services(text: str) -> tuple[str, ...]:
    """Returns the services that `--log` names, each once, in order. Raises `UserError` for an unknown one.

    >>> log_services("wandb, tensorboard,wandb"), log_services("none")
    (('wandb', 'tensorboard'), ())
    """
    names = [name for one in text.split(",") if (name := one.strip().lower())]
    if names == ["none"]:
        return ()
    for name in names:
        if name not in SERVICES:
            near = difflib.get_close_matches(name, SERVICES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SERVICES)}, or none"
            raise UserError(f"--log {text}: no service {name!r}; {hint}")
    return tuple(dict.fromkeys(names))
