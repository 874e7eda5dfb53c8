"""Builds beside the installed one: the kernels under sanitizers, and the CUDA sources for every architecture."""

from __future__ import annotations

import importlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    """A module of bench/kernels, whose modules import one another as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench" / "kernels")
        return importlib.import_module(name)


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
def test_cuda_kernels_execute_no_more_instructions_than_the_committed_table():
    """The speed test that needs no GPU: bench/kernels/instruction_counts.py, which also writes the table."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    counts = load("instruction_counts")
    if counts.find_nvdisasm() is None:
        pytest.skip("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    table = counts.read_table(counts.TABLE.read_text(encoding="utf-8"))
    measured = counts.measure()
    assert measured.keys() == table.keys()
    grown = {key: (table[key], round(now, 2)) for key, (now, _) in measured.items() if now > 1.05 * table[key]}
    assert not grown, "instructions an element, committed and now: if that is meant, write the table again"


THREAD_CODE = """
.text.toy:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   ULDC.64 UR4, c[0x0][0x210] ;
        /*0020*/                   IMAD.WIDE R2, R0, 0x4, RZ ;
        /*0030*/                   IADD3 R4, P1, R2, UR4, RZ ;
        /*0040*/                   IADD3.X R5, R3, UR5, RZ, P1, !PT ;
        /*0050*/                   LDG.E R6, desc[UR8][R4.64] ;
.L_x_1:
        /*0060*/                   VIADD R6, R6, 0xffffffff ;
        /*0070*/                   FSETP.GT.AND P2, PT, R9, R8, PT ;
        /*0080*/               @P2 BRA `(.L_x_2) ;
        /*0090*/                   FMUL R8, R8, R8 ;
.L_x_2:
        /*00a0*/                   ISETP.GT.AND P0, PT, R6, RZ, PT ;
        /*00b0*/               @P0 BRA `(.L_x_1) ;
        /*00c0*/                   EXIT ;
"""


@pytest.mark.parametrize(("thread", "rounds"), [(0, 3), (1, 7)])
def test_executed_instructions_of_a_toy_kernel(thread, rounds):
    """A loop as long as a word of memory says, at a 64-bit address with a carry; inside, a branch on floats."""
    sass = load("sass")
    kernel = sass.parse(THREAD_CODE)[0]
    words = {0x1_0000_0000 - 4: 3, 0x1_0000_0000: 7}
    counts = sass.Thread({"SR_TID.X": thread}, {0x210: 0xFFFF_FFFC, 0x214: 0}, words).run(kernel)
    assert counts["VIADD"] == rounds
    assert counts["FMUL"] == 0
    assert counts.total() == 6 + 5 * rounds + 1


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
