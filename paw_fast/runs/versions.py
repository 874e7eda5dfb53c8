"""Records what a run was started with: package versions, command line, commit and machine."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paw_fast.runs.secrets import mask_credentials

_PACKAGES = ("paw-fast", "torch", "transformers", "tokenizers", "numpy", "vllm", "alfworld", "textworld")


def versions() -> dict[str, str]:
    """Returns the versions of Python, the platform and the packages that affect the results of a run."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def with_start(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of versions.json with this start of the run added to `recorded`.

    The versions at the top are those of the first start; each entry of `starts` has those that differ from them.
    """
    now = versions()
    first = {name: value for name, value in recorded.items() if name != "starts"} or now
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": mask_credentials(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "host": socket.gethostname(),
        "device": device_name(),
        "commit": git_commit(Path(__file__).parent),
        "changed": {name: value for name, value in now.items() if first.get(name) != value},
    }
    return {**first, "starts": [*recorded.get("starts", []), start]}


def device_name() -> str:
    """Returns the names of the CUDA devices if torch finds any, else the model of the CPU and its number of cores."""
    import os

    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return (
        f"{cpu_model()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    )


def cpu_model() -> str:
    """Returns the model name of the CPU, or of its architecture if the system does not name it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_commit(folder: Path) -> str | None:
    """Returns the commit of the checkout that contains `folder`, with `-dirty` if files were changed.

    None if the folder is not tracked by git, such as in an installed package, or git is missing.
    """

    def git(*args: str) -> str:
        command = ["git", "-C", str(folder), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", "--", "."):
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
