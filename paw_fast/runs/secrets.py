"""Masks credentials before they are written to run directories, reports and messages, and local paths before they are
published."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any

MASK = "***"
_USER = re.compile(r"(?<=://)[^/\s\"'?#]+(?=@)")
_QUERY = re.compile(r"([?&][^=&\s\"']*(?:key|token|secret|passw|auth|signature)[^=&\s\"']*=)[^&#\s\"']+", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
_SECRET_NAME = re.compile(
    r"(?:^|[._-])(?:(?:api|access|secret|private)[_-]?key|secret|token|password|passwd|passphrase|credentials?)$",
    re.IGNORECASE,
)
"""Names of settings whose value is a credential: `api_key`, `hf_token`; not `max_tokens` and `token_budget`."""
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
# In the text of a setting: not the path of an address (https://host/path) and not a relative path (runs/a).
_PATH = re.compile(r"(?<![\w/.~-])(?!(?<=:)//)(?:file://)?~?/[^\s\"',;:]*/[^\s\"',;:]*")


def mask_credentials(text: str) -> str:
    """Replaces user names and passwords in addresses, and the values of secret query parameters, by `***`.

    >>> mask_credentials("see http://me:secret@host:8000/retrieve?api_key=abc&topk=3")
    'see http://***@host:8000/retrieve?api_key=***&topk=3'
    """
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(MASK, text))


def mask_text(text: str) -> str:
    """Masks the credentials in the text of a setting, and leaves only the last part of absolute local paths.

    >>> mask_text("/home/me/my games/train.json:2"), mask_text("runs/a"), mask_text("https://host/a/b")
    ('.../train.json:2', 'runs/a', 'https://host/a/b')
    """
    text = _HUB_TOKEN.sub(MASK, mask_credentials(text))
    if text.startswith(("/", "~/", "file:///")) and "," not in text:
        return f".../{PurePath(text).name}"
    if _WINDOWS.match(text):
        return f".../{PureWindowsPath(text).name}"
    return _PATH.sub(lambda found: f".../{PurePath(found[0]).name}", text)


def mask_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested settings as they can be published: by `mask_text`, and `***` where the name is that of a secret.

    >>> mask_settings({"env": {"data": "/home/me/games", "api_key": "abc"}, "steps": 3})
    {'env': {'data': '.../games', 'api_key': '***'}, 'steps': 3}
    """
    return {name: _mask_value(name, value) for name, value in settings.items()}


def _mask_value(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return mask_settings(value)
    if isinstance(value, list):
        return [_mask_value(name, one) for one in value]
    if not isinstance(value, str):
        return value
    return MASK if value and value.lower() != "none" and _SECRET_NAME.search(name) else mask_text(value)


def mask_command(command: str) -> str:
    """Returns a command line as it can be published.

    >>> mask_command("paw-fast train --env.data=/home/me/games --env.api-key abc --max-tokens 3")
    "paw-fast train --env.data=.../games --env.api-key '***' --max-tokens 3"
    """
    try:
        args = shlex.split(command)
    except ValueError:
        return mask_text(command)
    masked: list[str] = []
    for number, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        before = args[number - 1] if number else ""
        if before.startswith("--") and "=" not in before and not arg.startswith("--") and _SECRET_NAME.search(before):
            masked.append(MASK)
        elif arg.startswith("--") and equals:
            masked.append(f"{name}={MASK if _SECRET_NAME.search(name) else mask_text(value)}")
        else:
            masked.append(mask_text(arg))
    return shlex.join(masked)
