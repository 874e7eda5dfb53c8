"""Shared fixtures: the location of the test data, and Hypothesis settings. Makes helper modules here importable."""

import os
import sys
from pathlib import Path

# A second thread only waits where models are tiny. torch reads this when it is imported, and so do child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))

from data_folder import find_test_data  # noqa: E402


@pytest.fixture(scope="session")
def test_data() -> Path:
    path = find_test_data()
    if path is None:
        pytest.skip("no test data: set PAW_FAST_TEST_DATA or put it at ../shared/data")
    return path


@pytest.fixture(scope="session")
def small_env(tmp_path_factory):
    """ALFWorld on small generated games."""
    from paw_fast import envs

    cache = tmp_path_factory.mktemp("games")
    env = envs.make("alfworld", size="small", num_train=24, num_unseen=12, cache_dir=cache)
    yield env
    env.close()


# Tests hold no timing: a busy machine is no failure.
hypothesis.settings.register_profile("paw_fast", deadline=None)
hypothesis.settings.load_profile("paw_fast")
