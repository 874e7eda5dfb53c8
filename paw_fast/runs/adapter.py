"""Reads and merges LoRA adapters in PEFT's format: folders with adapter_config.json and adapter_model.safetensors.

The folder names its base model, which is not in it. No torch at import.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs.memory_errors import describe_out_of_memory

ADAPTER_CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"


def require_peft(why: str) -> None:
    """Raises `UserError`, with the command that installs it, if PEFT is missing. why: what needs it."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError(f"{why} needs peft: {install_hint('lora')}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings of PEFT about names of transformers that it still uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def is_adapter(folder: Path) -> bool:
    """Whether a path is a folder with an adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The base model of the adapter in a folder: a model folder, or a name on the Hugging Face Hub.

    A base inside the run directory (`RUN/warm_start`) is found also where the run directory has been moved. Raises
    `UserError` if the configuration cannot be read, or names a folder that is not there.
    """
    path = folder / ADAPTER_CONFIG
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get(BASE)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(base, str) or not base:
        raise UserError(f"{path} does not name the adapter's base model ({BASE})")
    if not Path(base).is_absolute() or Path(base).is_dir():
        return base
    beside = folder.resolve().parent.parent / Path(base).name  # RUN/checkpoints/step_000040 -> RUN
    if (beside / "config.json").is_file():
        return str(beside)
    raise UserError(
        f"the base model of the adapter in {folder} is not there: {base}; put it back, or correct {BASE} in {path}"
    )


def load_adapter(model: Any, folder: Path, trainable: bool) -> Any:
    """Adds the adapter in `folder` to its base model; returns the `peft.PeftModel`. Raises `UserError` if it does not
    fit."""
    require_peft(f"the LoRA adapter in {folder}")
    import peft

    try:
        with quiet():
            return peft.PeftModel.from_pretrained(
                model, folder, is_trainable=trainable, autocast_adapter_dtype=False, local_files_only=True
            )
    except Exception as error:  # a damaged file, or an adapter of another model
        if describe_out_of_memory(error) is not None:
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the adapter in {folder} does not fit its base model: {said}") from error


def merge_adapter(folder: Path, out: Path) -> None:
    """Writes the base model of the adapter in `folder` with the adapter merged into its weights, to a folder `out`.

    The weights keep the data type in which the base model is saved. Raises `UserError` if the base cannot be loaded.
    """
    require_peft(f"the LoRA adapter in {folder}")
    import transformers

    base = base_of(folder)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the base model {base} of the adapter in {folder} cannot be loaded: {said}") from error
    load_adapter(model, folder, trainable=False).merge_and_unload().save_pretrained(out)
