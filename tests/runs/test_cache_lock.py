"""Tests of the lock on cache entries: the second process waits, says so, and goes on when the first ends."""

import fcntl
import os
import signal

import pytest

from paw_fast.runs import stop_signals
from paw_fast.runs.cache_lock import cache_lock


def held(path):
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def test_the_second_waits_with_one_line(tmp_path, capsys):
    path = tmp_path / "new" / ".lock"
    path.parent.mkdir()
    other, sleeps = held(path), []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:
            os.close(other)

    with cache_lock(path, "the games", sleep), pytest.raises(BlockingIOError):
        fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert len(sleeps) == 3
    assert capsys.readouterr().err == "waiting for another process that makes the games\n"
    os.close(held(path))  # it was released


def test_a_stop_ends_the_wait(tmp_path):
    other = held(tmp_path / ".lock")
    with stop_signals.handled(lambda text: None):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(stop_signals.Interrupted), cache_lock(tmp_path / ".lock", "the games"):
            pytest.fail("entered while another holds the lock")
    os.close(other)


def test_a_folder_that_cannot_be_written_has_no_lock(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with cache_lock(tmp_path / "file" / ".lock", "the games"):
        pass
