"""Keeps warm-started models in the user's cache, so that runs with the same demonstrations and settings share one.

    <cache>/warm_start/<key>/model/          what `warm_start` writes into RUN/warm_start
    <cache>/warm_start/<key>/settings.json   what the key is the hash of
    <cache>/warm_start/<key>/manifest.json   size and SHA-256 of every file

The key covers everything that decides the weights: a hit is bit for bit what would be built.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import paw_fast
from paw_fast.config import TrainConfig
from paw_fast.envs.base import Expert
from paw_fast.errors import UserError
from paw_fast.kernels import native
from paw_fast.models.policy import resolve_device
from paw_fast.runs import console
from paw_fast.runs.atomic_files import build_folder, cache_folder, user_errors
from paw_fast.runs.manifest import digest, faults, seal

MAX_ENTRIES = 16
"""Entries that are kept, of about 10 MB each; the one that was not used for longest is removed first."""

_CODE = ("sft", "models", "learner", "kernels", "rollout", "types.py")
"""The parts of the package that turn demonstrations into a model. Environments and experts are covered by the
demonstrations."""


def settings_of(config: TrainConfig, demos: Sequence[Any], num_tasks: int, expert: Expert) -> dict[str, Any]:
    """Everything that decides the warm-started model, as JSON. The run's seed is not among it."""
    shown = hashlib.sha256()
    for demo in demos:
        shown.update(repr(demo).encode())
    device = resolve_device(config.model.device)
    template = Path(config.env.template)
    return {
        "demonstrations": shown.hexdigest(), "num_tasks": num_tasks,
        "token_pattern": expert.token_pattern, "early_answer_share": expert.early_answer_share,
        "warm_start": {k: v for k, v in dataclasses.asdict(config.warm_start).items() if k != "cache"},
        "layout": config.layout, "env": config.env.name, "history": config.env.history,
        "max_observation_chars": config.env.max_observation_chars,
        "max_observation_tokens": config.env.max_observation_tokens,
        "template": digest(template) if template.suffix == ".toml" else config.env.template,
        "max_sequence_tokens": config.rollout.max_sequence_tokens,
        # These decide the order in which floating-point numbers are added.
        "token_budget": config.batch_tokens, "logits_budget_mb": config.logits_bytes >> 20,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability(),
        "kernels": native.kernel_info()["cpu_isa"], "code": _code_digest(),
        "packages": {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
    }  # fmt: skip


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """The SHA-256 of the package's files that `_CODE` names, compiled kernels included."""
    root = Path(paw_fast.__file__).parent
    found = hashlib.sha256()
    for path in _files(root / part for part in _CODE):
        found.update(f"{path.relative_to(root)} {digest(path)}\n".encode())
    if (extension := native.extension_path()) is not None:
        found.update(digest(extension).encode())
    return found.hexdigest()


def _files(parts: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for part in parts:
        found += [part] if part.is_file() else [p for p in part.rglob("*") if p.suffix in (".py", ".toml")]
    return sorted(found)


def key_of(settings: dict[str, Any]) -> str:
    """The name of the entry of these settings.

    >>> key_of({"b": 1, "a": 2}) == key_of({"a": 2, "b": 1}) != key_of({"a": 2, "b": 2})
    True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def entry_of(key: str) -> Path:
    """The folder of an entry of the cache."""
    return cache_folder() / "warm_start" / key


def take(entry: Path, folder: Path) -> bool:
    """Copies the model of an intact entry to `folder`; False where there is none, with one line if it is damaged."""
    if not entry.is_dir():
        return False
    if found := faults(entry):
        console.say(f"the cached warm start in {entry} is damaged: {found[0]}; building it again")
        return False
    with user_errors("copy the cached warm start", folder):
        build_folder(folder, lambda hidden: shutil.copytree(entry / "model", hidden, dirs_exist_ok=True), replace=True)
    with suppress(OSError):  # a cache that cannot be written is still read
        os.utime(entry)
    return True


def put(entry: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Copies the model in `folder` into the cache, and removes the entries beyond `MAX_ENTRIES`. A cache that cannot be
    written is said in one line, and the run goes on."""

    def build(hidden: Path) -> None:
        shutil.copytree(folder, hidden / "model")
        (hidden / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        seal(hidden)

    try:
        with user_errors("write the warm start to the cache", entry, "the next run builds it again"):
            build_folder(entry, build, replace=True)
        _prune(entry.parent)
    except UserError as error:
        console.say(f"warning: {error}")


def _prune(root: Path) -> None:
    entries = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(entries, key=lambda one: one.stat().st_mtime)[:-MAX_ENTRIES]:
        shutil.rmtree(path, ignore_errors=True)
        path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
