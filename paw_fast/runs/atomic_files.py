"""Writes files atomically and turns operating-system errors into one-line messages.

Everything that writes into a run directory uses it. Imports no torch.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from paw_fast.errors import UserError
from paw_fast.runs.memory_errors import describe_out_of_memory

_READING = re.compile(r"(read|load|open|list)\b")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_PATH_MISTAKES = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_ACCESS_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder for generated and converted data: `cache_dir`, or `paw-fast` in the XDG cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "paw-fast"


def error_number(error: BaseException) -> int | None:
    """Returns the errno behind an exception, or None.

    Follows `__cause__`, and reads the number from the message of libraries (safetensors) that keep it only as text.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        found = re.search(r"\(os error (\d+)\)", str(seen))
        if found:
            return int(found.group(1))
        seen = seen.__cause__
    return None


def describe_os_error(error: BaseException, path: str | Path, reading: bool | None = None) -> str | None:
    """Describes in one line what went wrong and how to fix it. Returns None when the exception has no errno.

    The description does not name the action that failed; `user_errors` adds it. reading: whether the path was read
    (True) or written; None finds out by its permissions.
    """
    number = error_number(error)
    if number is None:
        return None
    if number in _DISK_FULL:
        try:
            free = f" ({shutil.disk_usage(existing_parent(Path(path))).free / 2**20:.0f} MiB free)"
        except OSError:
            free = ""
        return f"the disk is full{free}: free some space or choose a folder on another disk"
    if number in _ACCESS_DENIED:
        if number == errno.EROFS:
            return "the file system is read-only: choose another folder or change its permissions"
        if reading is None:
            reading = os.path.exists(path) and not os.access(path, os.R_OK)
        if reading:
            return "no permission to read it: change its permissions"
        return "no permission to write there: choose another folder or change its permissions"
    if number == errno.EFBIG:
        return "the file would be larger than the limit set for this process (ulimit -f) or its file system allows"
    return os.strerror(number)


def existing_parent(path: Path) -> Path:
    """Returns the path itself, or its nearest existing ancestor."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


@contextmanager
def user_errors(action: str, path: str | Path, after: str = "") -> Iterator[None]:
    """Context manager that turns operating-system errors into one-line `UserError`s. Other exceptions pass unchanged.

    Args:
        action: completes the sentence "cannot ...".
        path: the file or folder that the message names.
        after: optional text appended to the message, such as what is still intact.

    >>> with user_errors("save the report", "/no/such/folder/report.html"):
    ...     raise PermissionError(13, "Permission denied")
    Traceback (most recent call last):
    ...
    paw_fast.errors.UserError: cannot save the report at /no/such/folder/report.html: no permission to write there: ...
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = describe_os_error(error, path, _READING.match(action) is not None)
        if reason is None:
            raise
        raise UserError(f"cannot {action} at {path}: {reason}{'; ' + after if after else ''}") from error


def is_at(handle: int, path: Path) -> bool:
    """Returns True if the open file descriptor still refers to the file at `path`.

    False means that the file was moved, replaced or deleted.
    """
    try:
        here, there = os.fstat(handle), os.stat(path)
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries (renames, new files) to disk. Does nothing on platforms that cannot open folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Flushes a file's contents to disk. Raises `OSError`."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically: temporary sibling, fsync, rename. Raises `UserError` when it cannot be written."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with user_errors("write the file", path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with create_exclusively(temporary) as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def create_exclusively(path: Path, mode: str = "w") -> IO[Any]:
    """Creates a temporary file for writing, of UTF-8 text ("w") or bytes ("wb").

    Anything else at `path` is removed first, and a link is not followed.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), mode, encoding=None if "b" in mode else "utf-8")


STALE_S = 24 * 3600


def build_folder(
    folder: Path, build: Callable[[Path], object], *, replace: bool = False, remove_stale: bool = True
) -> None:
    """Makes `folder` by calling `build` on a hidden folder beside it, which is renamed when it is complete.

    Several processes may do so at once: the first to rename its folder wins, and what the others made is dropped.
    replace: an existing `folder` gives way. remove_stale: also removes hidden folders that a killed process left
    behind a day ago or earlier; not for builds that may take that long. Raises what `build` raises, `OSError`, and
    `UserError` where the finished folder cannot be renamed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if remove_stale:
        for path in folder.parent.glob(".making-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_S:
                    shutil.rmtree(path, ignore_errors=True)
    hidden = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        build(hidden)
        hidden.chmod(0o755)
        if replace and folder.exists():
            old = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
            with suppress(OSError):
                os.rename(folder, old / "old")
            shutil.rmtree(old, ignore_errors=True)
        with suppress(OSError):  # another process was first; what it made is the same
            os.rename(hidden, folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    if not folder.is_dir():
        raise UserError(f"cannot make the folder {folder}: renaming the finished one failed")


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Runs a command and returns the exit status of the process. User errors are printed to stderr as one line.

    The status is

    - 0, or the number that the command returned (75 after a stop signal other than Ctrl-C, see `stop_signals`);
    - 2 for a `UserError`, for an operating-system error about a full disk, a path or a permission, and where memory
      has run out;
    - 130 after Ctrl-C;
    - 141 when the reader of stdout has closed the pipe.

    Any other exception is a bug in paw-fast and propagates with its traceback.
    """
    try:
        return command() or 0
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, which would raise again: redirect it to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        place = error.filename or Path.cwd()
        message = f"{place}: {describe_os_error(error, place)}"
        if error.errno == errno.ENOMEM:
            message = _out_of_memory(error)
        elif error.errno not in _DISK_FULL | _ACCESS_DENIED | _PATH_MISTAKES:
            raise
    except Exception as error:
        if describe_out_of_memory(error) is None:
            raise
        message = _out_of_memory(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _out_of_memory(error: BaseException) -> str:
    what = describe_out_of_memory(error)
    return f"{what}: end other programs, or ask for less (in training: --rollout.slots, --token-budget)"
