"""Skips the tests of ScienceWorld without the package or Java, and shares a JVM among them."""

import importlib.util
import shutil

import pytest

from paw_fast import envs


@pytest.fixture(scope="session", autouse=True)
def _need_scienceworld():
    if importlib.util.find_spec("scienceworld") is None:
        pytest.skip("scienceworld is not installed: pip install '.[scienceworld]'")
    if shutil.which("java") is None:
        pytest.skip("there is no java")


@pytest.fixture(scope="session")
def plain_env(_need_scienceworld):
    """All tasks, without processes of its own."""
    env = envs.make("scienceworld", time_limit_s=None)
    yield env
    env._jvm.stop()


@pytest.fixture(scope="session")
def reference(_need_scienceworld):
    """The package's own environment."""
    from scienceworld import ScienceWorldEnv

    env = ScienceWorldEnv()
    yield env
    env._obj_tree_tempdir.cleanup()
    process = env._gateway.java_process
    env.close()
    process.kill()
    process.wait(10)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
