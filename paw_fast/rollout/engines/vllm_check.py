"""Finds packages installed with vLLM that break it because they were built for another torch. Imports no torch."""

from __future__ import annotations

import subprocess
import sys
from importlib import util

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages to check. paw-fast needs none of them."""


def broken_companions() -> dict[str, str]:
    """Returns the installed packages that cannot be imported, each with the last line of its error.

    Each import runs in a separate process, because an incompatible library can crash the process.
    """
    found = {}
    for name in COMPANIONS:
        if util.find_spec(name) is None:
            continue
        tried = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=120)
        if tried.returncode:
            lines = tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"]
            found[name] = lines[-1]
    return found
