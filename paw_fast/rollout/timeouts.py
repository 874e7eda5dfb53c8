"""Limits the time of blocking calls in this process."""

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
"""Seconds after the limit until the process is ended, if the call does not return to Python to raise the error."""


@contextmanager
def time_limit(seconds: float, what: str, setting: str) -> Iterator[None]:
    """Context manager that raises `EngineError` if the block takes longer than `seconds`.

    The message is "waited <seconds> s for <what>; see <setting>". C code that does not return cannot be interrupted by
    an exception, and neither can threads other than the main thread. In these cases the process exits `GRACE_S` seconds
    later with status 1 and prints the same message.

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
    # Another timer (of a test) may be running: it is restored with its remaining time.
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
