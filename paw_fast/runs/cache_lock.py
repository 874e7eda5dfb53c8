"""Lets one process build an entry of the cache while others wait for it. No torch."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paw_fast.runs import console, stop_signals

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EACCES, errno.EPERM, errno.EROFS}
POLL_S = 0.2


@contextmanager
def cache_lock(path: Path, what: str, sleep: Callable[[float], object] = time.sleep) -> Iterator[None]:
    """Holds a lock on the file `path`, which is created and stays. It ends with the process that holds it.

    While another process holds it, this one waits, says so in one line, and stops at a stop signal. `what` names what
    the other process makes. Where the file system allows no locks or the folder cannot be written, there is no lock:
    for work that is correct without it, only done twice.
    """
    handle = None
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            _wait(handle, what, sleep)
        except OSError as error:
            if error.errno not in _NO_LOCKS | {errno.ENOTDIR, errno.EEXIST, errno.ENOSPC}:
                raise
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _wait(handle: int, what: str, sleep: Callable[[float], object]) -> None:
    said = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not said:
                console.say(f"waiting for another process that makes {what}")
                said = True
            stop_signals.check()
            sleep(POLL_S)
