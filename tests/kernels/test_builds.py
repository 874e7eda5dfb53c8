"""Builds beside the installed one: the CPU kernels under sanitizers, and the CUDA sources for every architecture."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))


def run(*command: str | Path, timeout: float = 580) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_cpu_kernels_under_sanitizers(tmp_path):
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not on PATH")
    run(cmake, "-S", ROOT, "-B", tmp_path, "-DPAW_FAST_SANITIZE=address,undefined")
    run(cmake, "--build", tmp_path, "-j", "2")
    assert "portable: done" in run(tmp_path / "paw_sanitize")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "86", "89", "90a"])
def test_cuda_sources_compile_without_warnings_or_spills(arch, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    for source in SOURCES:
        log = run(
            nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-Xcompiler=-Wall", "-c", source,
            f"-gencode=arch=compute_{arch},code=sm_{arch}", "-o", tmp_path / "out.o",
        )  # fmt: skip
        assert "warning" not in log.lower(), log[-3000:]
        spilled = [n for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log) if n != "0"]
        assert not spilled, f"{source.name} for sm_{arch} spills: {spilled}"
        assert "registers" in log
