"""Refuses surroundings in which no command can work."""

from __future__ import annotations

import os
from collections.abc import Sequence

from paw_fast.errors import UserError


def check_surroundings(argv: Sequence[str]) -> None:
    """Raises `UserError` for what no command can work with: a current folder that was removed, and text that is not
    UTF-8, which settings and reports could not hold."""
    try:
        folder = os.getcwd()
    except OSError as error:
        raise UserError(
            f"the current folder cannot be read ({error.strerror}): it was removed, or its disk has vanished; "
            "change to another one with cd"
        ) from None
    for what, text in (*(("the argument", arg) for arg in argv), ("the current folder", folder)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            shown = text.encode("utf-8", "backslashreplace").decode()
            raise UserError(
                f"{what} {shown} is not UTF-8: set LC_ALL=C.UTF-8 if the terminal writes UTF-8, else rename the file"
            ) from None
