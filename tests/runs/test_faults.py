"""A short run of bench/faults.py, which injects faults into trainings and resumes them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_few_faults_are_survived(tmp_path):
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    out = tmp_path / "faults.md"
    command = [sys.executable, ROOT / "bench" / "faults.py", "--quick", "--seed", "7", "--out", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials, 4 survived; seed 7" in out.read_text()
