"""Packages that come with vLLM and stop it where they were built for another torch. Imports no torch."""

from __future__ import annotations

import subprocess
import sys
from importlib import util

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""None of them is needed here."""


def broken_companions() -> dict[str, str]:
    """The last line of what each says that is installed and cannot be imported; each is tried in a process of its
    own, because a library that does not fit may end the process."""
    found = {}
    for name in COMPANIONS:
        if util.find_spec(name) is None:
            continue
        tried = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=120)
        if tried.returncode:
            lines = tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"]
            found[name] = lines[-1]
    return found
