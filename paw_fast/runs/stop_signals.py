"""Turns the signals that ask a command to stop into an exception at a place where its work can be left.

The handler only sets a flag. Every phase calls `check` where nothing is lost by leaving: once a generated game, a
demonstration, an optimizer step of the imitation, a step of the generator, a scored group, a measured batch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

EXIT_INTERRUPTED = 130
"""After Ctrl-C."""
EXIT_RESUME = 75
"""After SIGTERM, SIGHUP or SIGUSR1 (EX_TEMPFAIL): whoever sent it should start the command again, with --resume."""

SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""What asks for a stop: Ctrl-C, a batch system or `kill`, a lost connection, a batch system's warning."""


Item = TypeVar("Item")


class Interrupted(BaseException):
    """A stop was asked for, raised where the work can be left. Not an `Exception`, so that nothing swallows it."""

    def __init__(self, signum: int = signal.SIGINT):
        super().__init__(signal.Signals(signum).name)
        self.status = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_RESUME


_installed = False
_asked: int | None = None
_deferred = 0


def asked() -> int | None:
    """The signal that asked for a stop, None where none did."""
    return _asked


def check() -> None:
    """Raises `Interrupted` where a stop was asked for, unless within `deferred`. Costs nothing otherwise."""
    if _asked is not None and not _deferred:
        raise Interrupted(_asked)


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
    """The items, with a `check` before each."""
    for item in items:
        check()
        yield item


@contextmanager
def handled(say: Callable[[str], None], first: str = "saving first") -> Iterator[None]:
    """Within the block the first of `SIGNALS` only asks for a stop; Ctrl-C after that quits at once.

    Ctrl-C works where SIGINT is inherited as ignored (`command &` in a script); SIGHUP stays ignored where it is
    (`nohup`). Blocks may be nested: the outermost counts. Does nothing outside the main thread, where Python runs no
    handlers. `say` gets one line, of which `first` is what happens before the end.
    """
    global _installed, _asked
    if _installed or threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(signum: int, frame: FrameType | None) -> None:
        global _asked
        if _asked is not None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        _asked = signum
        by = "" if signum == signal.SIGINT else f" ({signal.Signals(signum).name})"
        again = " again" if signum == signal.SIGINT else ""
        say(f"stopping{by}: {first} (Ctrl-C{again} quits at once)")

    before: dict[int, Any] = {}
    _installed, _asked = True, None
    try:
        for one in SIGNALS:
            if one == signal.SIGINT or signal.getsignal(one) is not signal.SIG_IGN:
                before[one] = signal.signal(one, on_signal)
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        _installed, _asked = False, None


def leave_to_parent() -> None:
    """Makes this process, a child, ignore `SIGNALS`: its parent handles them, and ends it."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def held_back() -> Iterator[None]:
    """Blocks `SIGNALS` in the block, and so in processes that it starts, until these call `leave_to_parent`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
