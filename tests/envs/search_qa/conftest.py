"""Fixtures of the search tests: an environment on a small synthetic corpus, and imports of the helper modules."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def search_env(tmp_path_factory):
    from search_extras import need

    need("bm25s", "Stemmer")
    from paw_fast import envs

    env = envs.make("search", num_train=60, num_unseen=36, seed=3, cache_dir=tmp_path_factory.mktemp("cache"))
    yield env
    env.close()
