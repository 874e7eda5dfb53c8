"""Loads the compiled extension, reports what it can run, and calls its kernels. The only importer of `_native`.

The extension does not depend on torch: it takes pointers, sizes, a dtype and either a number of threads (CPU) or a
stream (CUDA). There are no silent fallbacks: an op that cannot run raises with `unavailable_reason`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

try:
    from paw_fast.kernels import _native  # pyright: ignore[reportAttributeAccessIssue]

    _import_error: str | None = None
except ImportError as error:
    _native: Any = None
    _import_error = str(error)

LIBRARY = torch.library.Library("paw_fast", "FRAGMENT")

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Without a limit a row index times a row stride could leave 64 bits; 2^20 is the largest vocabulary tested.
MAX_VOCAB = 1 << 20

_kernels_of: dict[str, tuple[str, ...]] = {}  # op -> the rows of csrc/ops.h that it calls


def register(op: str, *kernels: str) -> str:
    """Declares an op and the kernels that it calls, by their names in csrc/ops.h. Returns the op's name.

    `kernel_info` and `paw-fast doctor` list every op declared.
    """
    _kernels_of[op] = kernels
    return op


def ops() -> tuple[str, ...]:
    """Returns the names of all ops."""
    return tuple(_kernels_of)


def unavailable_reason(op: str, device: torch.device | str = "cpu") -> str | None:
    """Returns why `op` cannot run on `device`, in one line that says how to fix it; None if it can.

    >>> unavailable_reason("paw_loss", "meta")
    'there are no kernels for meta devices: move the tensors to a CPU or a CUDA device'
    """
    if op not in _kernels_of:
        raise ValueError(f"unknown op {op!r}: the ops are {', '.join(ops())}")
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        return f"there are no kernels for {kind} devices: move the tensors to a CPU or a CUDA device"
    if _native is None:
        return f"the compiled extension is missing ({_import_error}): install the package with `pip install .`"
    if not set(_kernels_of[op]) <= set(getattr(_native, "ops", ())):
        return f"the compiled extension is older than this package and lacks {op}: run `pip install .` again"
    if kind == "cuda":
        if not _native.cuda_compiled:
            return (
                f"the CUDA kernels are not in this build: {_native.cuda_reason}; "
                "put nvcc on PATH and run `pip install .` again"
            )
        if not torch.cuda.is_available():
            return "torch finds no CUDA device: check the driver, and that torch is a CUDA build"
        return cuda_mismatch(_native.cuda_archs, torch.cuda.get_device_capability(device), *_native.cuda_versions())
    return None


def cuda_mismatch(archs: str, capability: tuple[int, int], runtime: int, driver: int) -> str | None:
    """Returns why kernels built for `archs` by the toolkit `runtime` cannot run on a device; None if they can.

    archs: as CMake names them, separated by spaces. Versions: 1000 * major + 10 * minor, as CUDA counts them.

    >>> cuda_mismatch("80-real 90a-real 90-virtual", (9, 0), 13000, 13010)
    >>> cuda_mismatch("80-real 90a-real", (12, 0), 13000, 13010)
    'the CUDA kernels were built for 80-real 90a-real, which leaves out this device (compute capability 12.0): \
run `PAW_FAST_CUDA_ARCHS=120 pip install .` again'
    """
    if capability < (8, 0):
        major, minor = capability
        return f"the CUDA kernels need compute capability 8.0 or newer, this device has {major}.{minor}"
    if driver // 1000 < runtime // 1000:
        return (
            f"the CUDA kernels were built with CUDA {_version(runtime)}, the driver supports up to {_version(driver)}: "
            f"update the driver, or run `pip install .` again with nvcc of CUDA {driver // 1000}"
        )
    number = 10 * capability[0] + capability[1]
    kinds = [kind for kind in (_runs_on(arch, number) for arch in archs.split()) if kind]
    if not kinds:
        return (
            f"the CUDA kernels were built for {archs}, which leaves out this device (compute capability "
            f"{capability[0]}.{capability[1]}): run `PAW_FAST_CUDA_ARCHS={number} pip install .` again"
        )
    if "real" not in kinds and driver < runtime:
        return (
            f"the CUDA kernels hold only PTX for this device, and that of CUDA {_version(runtime)} needs a driver as "
            f"new, but this one supports up to {_version(driver)}: update the driver, or run "
            f"`PAW_FAST_CUDA_ARCHS={number} pip install .` again"
        )
    return None


def _version(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def _runs_on(arch: str, number: int) -> str | None:
    """Returns how code of a CMake architecture runs on compute capability `number`: "real", "virtual" or None."""
    match = re.fullmatch(r"(\d+)([af]?)(-real|-virtual)?", arch)
    if match is None:  # "native", "all": CMake knows, we do not
        return "real"
    built, suffix, kind = int(match[1]), match[2], match[3]
    same_major = built // 10 == number // 10 and built <= number
    if kind != "-virtual" and (built == number if suffix == "a" else same_major):
        return "real"
    if kind != "-real" and {"": built <= number, "a": built == number, "f": same_major}[suffix]:
        return "virtual"
    return None


def kernel_info() -> dict[str, Any]:
    """Returns what was built and what can run here, for `paw-fast doctor`.

    Keys: `extension` (bool), `extension_error` (str or None), `cpu_isa` (the instruction set in use), `cpu_isas`
    (those this machine could use), `cuda_compiled` (bool), `cuda_archs` (str), `cuda_reason` (why CUDA is not
    compiled, or ""), `cuda_runtime` and `cuda_driver` (versions as CUDA counts them, 13000 for 13.0; 0: none), and
    `unavailable`: for each op and device ("cpu", "cuda") the reason, or None.
    """
    runtime, driver = _native.cuda_versions() if _native and hasattr(_native, "cuda_versions") else (0, 0)
    return {
        "extension": _native is not None,
        "extension_error": _import_error,
        "cpu_isa": _native.cpu_isa() if _native else None,
        "cpu_isas": _native.cpu_isas() if _native else [],
        "cuda_compiled": bool(_native and _native.cuda_compiled),
        "cuda_archs": _native.cuda_archs if _native else "",
        "cuda_reason": _native.cuda_reason if _native else "",
        "cuda_runtime": runtime,
        "cuda_driver": driver,
        "unavailable": {op: {device: unavailable_reason(op, device) for device in ("cpu", "cuda")} for op in ops()},
    }


def extension_path() -> Path | None:
    """Returns the file of the compiled extension, or None if there is none."""
    return Path(_native.__file__) if _native is not None else None


def use_cpu_isa(isa: str) -> None:
    """Selects another instruction set of `kernel_info()["cpu_isas"]` for the CPU kernels; for tests and benchmarks."""
    _native.use_cpu_isa(isa)


def call(op: str, kernel: str, device: torch.device, fields: dict[str, float | int | torch.Tensor | None]) -> None:
    """Runs a kernel of csrc/ops.h on `device`. `fields`: one value for each field of its argument struct, by name.

    Tensors are passed by their pointers, None as null. The caller has checked shapes, dtypes and devices, and keeps the
    tensors alive. Raises TypeError for a field that is missing or that the struct does not have, RuntimeError where
    the op cannot run.
    """
    reason = unavailable_reason(op, device)
    if reason is not None:
        raise RuntimeError(f"paw_fast.kernels.{op} cannot run: {reason}")
    if device.type == "cuda":
        with torch.cuda.device(device):
            getattr(_native, kernel)(True, torch.cuda.current_stream().cuda_stream, fields)
    else:
        getattr(_native, kernel)(False, torch.get_num_threads(), fields)


def matrix_fields(logits: torch.Tensor) -> dict[str, Any]:
    """Returns the fields that describe a matrix of logits: pointer, dtype, shape and row stride."""
    rows, vocab = logits.shape
    return {"logits": logits, "dtype": DTYPES[logits.dtype], "rows": rows, "vocab": vocab, "stride": logits.stride(0)}


def map_fields(temperature: float, softcap: float, valid_vocab: int) -> dict[str, Any]:
    """Returns the fields of csrc/common/logit_map.h."""
    return {"inv_temperature": 1.0 / temperature, "softcap": softcap, "valid_vocab": valid_vocab}


def check_logits(op: str, logits: torch.Tensor, valid_vocab: int) -> None:
    """Raises ValueError unless `logits` is a matrix [N, V] with contiguous rows, in fp32, bf16 or fp16."""
    if logits.dim() != 2:
        raise ValueError(
            f"{op}: logits must be [N, V], got shape {tuple(logits.shape)}: flatten the leading dimensions"
        )
    if logits.dtype not in DTYPES:
        raise ValueError(f"{op}: logits must be float32, bfloat16 or float16, got {logits.dtype}")
    rows, vocab = logits.shape
    if not 0 < vocab <= MAX_VOCAB:
        raise ValueError(f"{op}: the vocabulary must be in [1, {MAX_VOCAB}], got {vocab}")
    if logits.stride(1) != 1 and vocab > 1:
        raise ValueError(f"{op}: each row must be contiguous, got strides {logits.stride()}: call .contiguous() first")
    if rows > 1 and logits.stride(0) < vocab:
        raise ValueError(f"{op}: rows overlap: row stride {logits.stride(0)} is less than the vocabulary {vocab}")
    if not 0 < valid_vocab <= vocab:
        raise ValueError(f"{op}: valid_vocab must be in [1, {vocab}], got {valid_vocab}")


def check_vector(
    op: str, name: str, vector: torch.Tensor | None, logits: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | None:
    """Returns a vector [N] as contiguous, or None if None was given. Raises ValueError otherwise."""
    if vector is None:
        return None
    if vector.shape != (logits.shape[0],):
        raise ValueError(f"{op}: {name} must be [{logits.shape[0]}] like the logits' rows, got {tuple(vector.shape)}")
    if vector.dtype != dtype:
        raise ValueError(f"{op}: {name} must be {dtype}, got {vector.dtype}")
    if vector.device != logits.device:
        raise ValueError(f"{op}: {name} is on {vector.device}, the logits are on {logits.device}")
    return vector.contiguous()


def check_targets(op: str, targets: torch.Tensor, valid_vocab: int) -> None:
    """Raises IndexError for targets outside [0, valid_vocab) on the CPU. On CUDA such rows become NaN."""
    if targets.is_cuda or targets.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(targets))
    if low < 0 or high >= valid_vocab:
        bad = low if low < 0 else high
        raise IndexError(f"{op}: target {bad} is outside the vocabulary [0, {valid_vocab})")


def check_map(op: str, temperature: float, softcap: float | None) -> None:
    if not temperature > 0.0:
        raise ValueError(f"{op}: temperature must be positive, got {temperature}")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"{op}: softcap must be positive, got {softcap}: use None for no softcap")


def bump_version(tensor: torch.Tensor) -> None:
    """Tells autograd that a kernel has written to `tensor`."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)
