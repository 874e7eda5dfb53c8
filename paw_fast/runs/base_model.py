"""Finds out what a run's model was before training: its name on the Hugging Face Hub and its license. No torch."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class BaseModel:
    """The model that training began with. Produced by `find_base_model`.

    text: in words. hub_name, license: as the Hub has them, None if not known. is_tiny: built by the run.

    >>> find_base_model("tiny").is_tiny
    True
    """

    text: str
    hub_name: str | None = None
    license: str | None = None
    is_tiny: bool = False


def find_base_model(path: str) -> BaseModel:
    """Returns the base model for `--model`, without a network.

    The license is taken from the model card in the folder or in the Hub's local cache, if there is one.
    """
    if path == "tiny":
        return BaseModel("a small model, built and trained on demonstrations of an expert first", is_tiny=True)
    if path == "smollm2-135m":
        name = "HuggingFaceTB/SmolLM2-135M-Instruct"
        return BaseModel(f"{name}, dequantized from 4 bits", name, "apache-2.0")
    folder = Path(path).expanduser()
    if folder.is_dir():
        hub_name, license = _read_card(folder / "README.md")
        text = f"the local model folder `{folder.resolve().name}`"
        return BaseModel(f"{text} ({hub_name})" if hub_name else text, hub_name, license)
    if not _HUB_NAME.fullmatch(path):
        return BaseModel(f"the model `{Path(path).name}`" if path else "a model that is not recorded")
    return BaseModel(f"[{path}](https://huggingface.co/{path})", path, _read_card(_cached_card(path))[1])


def _cached_card(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):
        found = try_to_load_from_cache(name, "README.md")
        return Path(found) if isinstance(found, str) else None
    return None


def _read_card(path: Path | None) -> tuple[str | None, str | None]:
    """(base model, license) of a model card; each None if it does not name one."""
    from huggingface_hub import ModelCard

    if path is None or not path.is_file():
        return None, None
    try:
        data = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (OSError, ValueError):
        return None, None
    found = [data.get("base_model"), data.get("license")]
    base, license = (one if isinstance(one, str) else None for one in found)
    # "other" stands for a license that only the card itself names.
    return base, license if license != "other" else None
