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


@pytest.mark.parametrize(
    ("capabilities", "wanted", "archs", "reason"),
    [
        ("9.0 9.0", "", "90a-real;90-virtual", ""),
        ("7.5 8.6 12.0", "", "86-real;120-real;120-virtual", "sm_75 (of a GPU of this machine) is older than sm_80"),
        ("7.5", "", "", "sm_75 (of a GPU of this machine) is older than sm_80"),
        ("", "", "80-real;90a-real;90-virtual", ""),
        ("7.5", "75-real;90a-real", "90a-real", "sm_75-real (asked for) is older than sm_80"),
    ],
)
def test_architectures_that_are_built(tmp_path, capabilities, wanted, archs, reason):
    """What older cards would only fail on in ptxas is left out; PTX of the newest card keeps later ones working."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on PATH")
    smi, script = tmp_path / "nvidia-smi", tmp_path / "archs.cmake"
    smi.write_text(f"#!/bin/sh\nprintf '%s\\n' {capabilities}\n")
    smi.chmod(0o755)
    script.write_text(
        f"cmake_minimum_required(VERSION 3.25)\ninclude({ROOT}/cmake/CudaArchs.cmake)\n"
        f'paw_choose_cuda_archs("{wanted}" "{smi if capabilities else ""}" archs reason)\n'
        'message("<${archs}><${reason}>")\n'
    )
    got = run("cmake", "-P", script)
    assert f"<{archs}>" in got
    assert f"<{reason}" in got


@pytest.mark.slow
def test_the_acceptance_bench_keeps_what_it_has_when_a_case_fails(tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "bench" / "gpu")!r})
import acceptance
def fail(logits, *rest):
    if logits.shape[1] == 1001:
        raise RuntimeError("no kernel image")
    return paw_loss(logits, *rest)
paw_loss, acceptance.K.paw_loss = acceptance.K.paw_loss, fail
acceptance.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "--device", "cpu", "--quick", "--rounds", "1", "--ours", "--only", "a", "b",
         "--out", str(tmp_path)], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "b paw_loss, paw-fast, 8 x 1001 bfloat16: failed: no kernel image" in done.stderr
    results = json.loads((tmp_path / "acceptance.json").read_text())["results"]
    assert [(r["op"][0], r["vocab"]) for r in results if not r["failed"]] == [
        ("a", 1000), ("b", 1000), ("a", 70000), ("b", 70000),
    ]  # fmt: skip


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
