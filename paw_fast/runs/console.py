"""Prints messages for the user. `progress` shows what is running.

All output goes to stderr; stdout is reserved for results (`--json`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console


class _Stderr:
    """File object that writes to the current `sys.stderr` and ignores errors of a closed terminal or pipe."""

    def write(self, text: str) -> int:
        self._ignore_errors(lambda: sys.stderr.write(text))
        return len(text)

    def flush(self) -> None:
        self._ignore_errors(lambda: sys.stderr.flush())

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    @staticmethod
    def _ignore_errors(write: Callable[[], object]) -> None:
        try:
            write()
        except OSError:
            with suppress(OSError, ValueError):  # buffered output is flushed at exit: redirect it to /dev/null
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, sys.stderr.fileno())
                os.close(null)


console = Console(file=cast(IO[str], _Stderr()), highlight=False)
_listener: Callable[[str], None] | None = None
lines_said = 0
"""Number of lines that `say` has printed: how `progress` knows that there was output."""


def say(text: str) -> None:
    """Prints one line to stderr, or passes it to the listener set by `redirect`."""
    global lines_said
    lines_said += 1
    if _listener is not None:
        _listener(text)
    else:
        console.print(text, markup=False, soft_wrap=True)


def redirect(listener: Callable[[str], None] | None) -> None:
    """Passes the messages of this process to `listener` instead of printing them. None restores printing."""
    global _listener
    _listener = listener


def is_live() -> bool:
    """Whether messages go to a terminal, on which a line can be drawn again."""
    return console.is_terminal and _listener is None
