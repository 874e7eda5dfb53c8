"""Fixtures of the ALFWorld tests: small generated games and the official ones. Makes helper modules here importable."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_official_data(monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)


@pytest.fixture(scope="session")
def small_env(tmp_path_factory):
    from paw_fast import envs

    cache = tmp_path_factory.mktemp("games")
    env = envs.make("alfworld", size="small", num_train=24, num_unseen=12, cache_dir=cache)
    yield env
    env.close()


@pytest.fixture(scope="session")
def official_games(test_data):
    paths = sorted((test_data / "alfworld" / "json_2.1.1").glob("*/*/*/game.tw-pddl"))
    if not paths:
        pytest.skip(f"no official ALFWorld games in {test_data}")
    return paths
