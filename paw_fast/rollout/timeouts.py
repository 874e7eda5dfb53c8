"""A time limit for calls in this process that could wait for ever."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from paw_fast.rollout.engines.base import EngineError

GRACE_S = 10.0
"""After the limit, for a call that does not come back to Python to raise the error."""


@contextmanager
def time_limit(seconds: float, what: str, setting: str) -> Iterator[None]:
    """Raises `EngineError` when the block takes longer: "waited 5 s for WHAT; see SETTING".

    A wait inside C code that never returns cannot be interrupted by an error: there the process ends, `GRACE_S`
    later, with status 1 and the same line. Only the main thread can be interrupted at all; in others the process ends.

    >>> with time_limit(60, "the weights of version 3", "--rollout.sync-timeout-s"):
    ...     pass
    """
    message = f"waited {seconds:g} s for {what}; see {setting}"

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise EngineError(message)

    def end() -> None:
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
        os._exit(1)

    watch = threading.Timer(seconds + GRACE_S, end)
    watch.daemon = True
    watch.start()
    in_main = threading.current_thread() is threading.main_thread()
    # Another timer (a test's) may be running: it is put back with what is left of it.
    before = signal.signal(signal.SIGALRM, interrupt) if in_main else None
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds) if in_main else (0.0, 0.0)
    try:
        yield
    finally:
        watch.cancel()
        if in_main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if left:
                signal.setitimer(signal.ITIMER_REAL, left, every)
