"""Turns stop signals (Ctrl-C, SIGTERM, ...) into an exception that is raised only at safe points.

The signal handler sets a flag. Every phase of a command calls `check` at points where it can stop without losing work:
after each generated game, expert demonstration, warm-start optimizer step, engine step, group of token statistics and
evaluation batch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C."""
EXIT_RESUME = 75
"""Exit status after SIGTERM, SIGHUP or SIGUSR1 (EX_TEMPFAIL): the caller should run the command again with --resume."""

SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""The stop signals: Ctrl-C, `kill` or a batch system, a lost connection, the advance warning of a batch system."""

Item = TypeVar("Item")


class Interrupted(BaseException):
    """A stop was requested. Raised at a safe point.

    Not a subclass of `Exception`, so that general exception handlers do not catch it. `status` is the exit status.
    """

    def __init__(self, signum: int = signal.SIGINT):
        super().__init__(signal.Signals(signum).name)
        self.status = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_RESUME


_installed = False
_requested: int | None = None
_deferred = 0


def check() -> None:
    """Raises `Interrupted` if a stop was requested, unless within `deferred`. Cheap otherwise."""
    if _requested is not None and not _deferred:
        raise Interrupted(_requested)


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block `check` does not raise: for work that must not be left half done."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1


def checked(items: Iterable[Item]) -> Iterator[Item]:
    """Yields the items, calling `check` before each."""
    for item in items:
        check()
        yield item


@contextmanager
def handled(say: Callable[[str], None], first: str = "saving first") -> Iterator[None]:
    """Context manager in which the first signal of `SIGNALS` requests a stop, and a following Ctrl-C quits at once.

    Ctrl-C also works if SIGINT is inherited as ignored (`command &` in a script); SIGHUP stays ignored if it was
    (`nohup`). Nested blocks have no effect. Does nothing outside the main thread, where Python runs no signal handlers.

    Args:
        say: called with a one-line message when the stop is requested.
        first: what the message says will happen before the command ends.
    """
    global _installed, _requested
    if _installed or threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(signum: int, frame: FrameType | None) -> None:
        global _requested
        if _requested is not None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        _requested = signum
        by = "" if signum == signal.SIGINT else f" ({signal.Signals(signum).name})"
        again = " again" if signum == signal.SIGINT else ""
        say(f"stopping{by}: {first} (Ctrl-C{again} quits at once)")

    before: dict[int, Any] = {}
    _installed, _requested = True, None
    try:
        for one in SIGNALS:
            if one == signal.SIGINT or signal.getsignal(one) is not signal.SIG_IGN:
                before[one] = signal.signal(one, on_signal)
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        _installed, _requested = False, None


def ignore_in_child() -> None:
    """Ignores `SIGNALS` in this process, a child whose parent handles them and ends it."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def blocked() -> Iterator[None]:
    """Context manager that blocks `SIGNALS`, also in processes started inside, until these call `ignore_in_child`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
