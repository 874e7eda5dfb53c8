"""Finds out early whether the model of `--model` exists: as a folder, in the cache, or on the Hugging Face hub.

transformers asks an unreachable hub again and again for a minute; here it is asked once, with a time limit.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import re
import threading
from pathlib import Path

from paw_fast.config import load_preset, recipes
from paw_fast.errors import UserError
from paw_fast.models.smollm2 import SMOLLM2, require_extra

ANSWER_TIME_S = 3.0
"""How long the hub may take to answer."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_model(name: str) -> None:
    """Raises `UserError` for a model that is no folder, no built-in model, not cached, and not on the hub.

    Takes at most a few seconds, and nothing is downloaded.
    """
    if name == "tiny":
        return
    if name == SMOLLM2:
        require_extra()
        return
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not is_model(folder):
            raise UserError(f"--model {name}: the folder has no config.json, so it is no Hugging Face model folder")
        try:
            json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"--model {name}: config.json cannot be read: {error}") from error
        return
    looks_local = name.startswith((".", "~", os.sep)) or name.rstrip(os.sep).count(os.sep) > 1
    if looks_local or not _HUB_NAME.fullmatch(name):
        raise UserError(f"--model {name}: no such folder; give a Hugging Face model folder or a hub name{_near(name)}")
    if not is_cached(name) and (problem := hub_problem(name)):
        raise UserError(f"--model {name}: no such folder, and {problem}{_near(name)}")


def is_model(folder: Path) -> bool:
    """Whether a path is a model folder in Hugging Face format."""
    return (folder / "config.json").is_file()


def is_cached(name: str) -> bool:
    """Whether the hub's local cache holds the model's configuration."""
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):  # not a name that the hub could have
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    return False


def use_cache_only(name: str) -> bool:
    """Whether a cached model should be loaded without asking the hub for changes, because it does not answer."""
    return not Path(name).expanduser().is_dir() and is_cached(name) and hub_problem(name) is not None


@functools.cache
def _recipe_models() -> frozenset[str]:
    return frozenset(load_preset(one).model.path for one in recipes())


@functools.cache
def hub_problem(name: str) -> str | None:
    """Why the hub cannot provide a model, as a part of a sentence; None if it can, or if only loading it will tell."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    host = constants.ENDPOINT.partition("//")[2] or constants.ENDPOINT
    found: list[str | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=ANSWER_TIME_S)
            found.append(None)
        except GatedRepoError:
            found.append(f"{host} gives it only to accounts that have asked for access: set HF_TOKEN to such a one's")
        except RepositoryNotFoundError:
            found.append(f"{host} has no such model (or a private one: set HF_TOKEN)")
        except EntryNotFoundError:
            found.append(f"{name} on {host} has no config.json, so it is no Hugging Face model")
        except OfflineModeIsEnabled:
            found.append("the hub is not asked because HF_HUB_OFFLINE is set, and the cache does not hold it")
        except Exception as error:  # any failure of the network
            answered = getattr(getattr(error, "response", None), "status_code", None)
            found.append(None if answered else f"{host} cannot be reached ({type(error).__name__})")

    # Looking up an address has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_TIME_S + 0.5)
    return found[0] if found else f"{host} did not answer within {ANSWER_TIME_S:g} s"


def _near(name: str) -> str:
    """The names that may have been meant: built-in models, those of the recipes, and folders beside the one named."""
    known = {"tiny", SMOLLM2, *_recipe_models()}
    by_short: dict[str, str] = {}
    with contextlib.suppress(OSError):
        by_short = {path.name.lower(): str(path) for path in Path(name).expanduser().parent.iterdir() if is_model(path)}
    by_short |= {one.rpartition("/")[2].lower(): one for one in known} | {one.lower(): one for one in known}
    wanted = [name.lower(), name.rstrip("/").rpartition("/")[2].lower()]
    near = [one for text in wanted for one in difflib.get_close_matches(text, by_short, n=1, cutoff=0.7)]
    if near and by_short[near[0]] != name:
        return f"; did you mean {by_short[near[0]]}?"
    return "" if name.startswith((".", "/", "~")) else f"; give a folder, {SMOLLM2} or tiny"
