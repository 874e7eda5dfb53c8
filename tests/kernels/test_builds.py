"""Builds beside the installed one: the kernels under sanitizers, and the CUDA sources for every architecture."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, timeout: float = 580) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_kernels_under_sanitizers():
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on PATH")
    log = run("bash", ROOT / "tests" / "kernels" / "sanitize.sh")
    assert log.count("portable: done") == 2
    if platform.machine() == "x86_64":
        assert log.count("emulated cluster 2: done") == 2
        assert log.count("emulated selection: done") == 2


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "86", "89", "90a"])
def test_cuda_sources_compile_without_warnings_or_spills(arch):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    log = run(sys.executable, ROOT / "bench" / "kernels" / "ptxas_table.py", "--archs", arch)
    assert "cluster_kernel" in log
    assert "select_kernel" in log


@pytest.mark.slow
def test_the_acceptance_bench_runs_on_a_cpu(tmp_path):
    script = ROOT / "bench" / "gpu" / "acceptance.py"
    log = run(sys.executable, script, "--device", "cpu", "--quick", "--rounds", "2", "--no-compile", "--out", tmp_path)
    assert "## Against the targets" in log
    record = json.loads((tmp_path / "acceptance.json").read_text())
    assert {r["op"][0] for r in record["results"]} == {"a", "b", "c"}
    assert not any(r["failed"] or r["nan"] for r in record["results"])
    assert record["commit"]
    assert (tmp_path / "acceptance.png").stat().st_size > 1000


def test_benchmark_option_runs_the_benches():
    log = run(sys.executable, "-m", "pytest", "--benchmark", "--benchmark-disable", "--collect-only", "-q", "-c",
              ROOT / "pyproject.toml", f"--rootdir={ROOT}")  # fmt: skip
    assert "bench_paw_loss.py::test_paw_loss" in log
    assert "test_builds.py" not in log
