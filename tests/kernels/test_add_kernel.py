"""The example of docs/howto/add_kernel.md, built and run as it stands there: five files and nothing else."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "howto" / "add_kernel.md"

USE = """
import sys

# The finder of an editable install comes before sys.path.
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, {folder!r})
import torch
from paw_fast import kernels
from paw_fast.kernels import native
from paw_fast.kernels.row_max import row_max

assert native._native.__file__.startswith({folder!r})
assert "row_max" in kernels.OPS and kernels.unavailable_reason("row_max") is None
x = torch.randn(5, 1001)[:, :999]
assert torch.equal(row_max(x), x.amax(1))

class OnCuda:
    def __getattr__(self, name):
        found = getattr(extension, name)
        return (lambda cuda, where, fields: found(True, 0, fields)) if name == "row_max" else found

extension, native._native = native._native, OnCuda()
assert torch.equal(row_max(x), x.amax(1))
torch.library.opcheck(torch.ops.paw_fast.row_max.default, (x,))
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def apply_diff(text: str, diff: str) -> str:
    """Inserts each added line after the line that stands before it in the diff."""
    before = ""
    for line in diff.splitlines():
        if line.startswith("+"):
            assert text.count(before + "\n") == 1, before
            text = text.replace(before + "\n", f"{before}\n{line[1:]}\n")
        before = line[1:]
    return text


@pytest.mark.slow
def test_the_example_builds_and_runs_from_five_files(tmp_path):
    cmake = shutil.which("cmake")
    pybind11 = importlib.util.find_spec("pybind11")
    if cmake is None or pybind11 is None or pybind11.origin is None:
        pytest.skip("needs cmake and pybind11 to build the example")
    for name in ("csrc", "cmake", "paw_fast", "tests/kernels/emulator"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    written = []
    for block in [*blocks("cpp"), *blocks("python")]:
        path = block.splitlines()[0].split()[1]
        (tmp_path / path).write_text(block, encoding="utf-8")
        written.append(path)
    (diff,) = blocks("diff")
    table = tmp_path / "csrc" / "ops.h"
    table.write_text(apply_diff(table.read_text(encoding="utf-8"), diff), encoding="utf-8")
    assert sorted(written) == ["csrc/row_max.cpp", "csrc/row_max.cu", "csrc/row_max.h", "paw_fast/kernels/row_max.py"]
    where = Path(pybind11.origin).parent / "share" / "cmake" / "pybind11"
    build = tmp_path / "build"
    for command in (
        [cmake, "-S", tmp_path, "-B", build, "-DPAW_FAST_EMULATE=ON", f"-DPython_EXECUTABLE={sys.executable}",
         f"-Dpybind11_DIR={where}"],
        [cmake, "--build", build, "-j", "2"],
    ):  # fmt: skip
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=580, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    shutil.copy(next(build.glob("_native*.so")), tmp_path / "paw_fast" / "kernels")
    command = [sys.executable, "-c", USE.format(folder=str(tmp_path))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
