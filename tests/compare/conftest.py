"""Makes the helper modules in this folder and in tests/runs importable, and provides the fixtures of small runs."""

import sys
from pathlib import Path

import pytest

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "runs"):
    sys.path.insert(0, str(folder))


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """A cache folder for the module, and no official games."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("ALFWORLD_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder with a randomly initialised model, so that no warm start is needed."""
    from small_runs import make_model

    return make_model(tmp_path_factory.mktemp("model"))
