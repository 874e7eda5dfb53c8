"""Tests of atomic writing, and of operating-system errors as one-line messages with an exit status."""

import errno
import os
import subprocess
import sys
import time

import pytest

from paw_fast.errors import UserError
from paw_fast.runs.atomic_files import build_folder, error_number, exit_code_of, user_errors, write_text


def test_error_number_reads_causes_and_messages_of_libraries():
    assert error_number(OSError(errno.ENOSPC, "No space left on device")) == errno.ENOSPC
    assert error_number(RuntimeError("I/O error: No space left on device (os error 28)")) == errno.ENOSPC
    assert error_number(ValueError("nothing of the kind")) is None
    outer = RuntimeError("unexpected pos 576 vs 534")
    outer.__cause__ = OSError(errno.EROFS, "Read-only file system")
    assert error_number(outer) == errno.EROFS


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "no permission to write there"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_each_error_is_one_line_with_reason_and_path(tmp_path, number, words):
    with pytest.raises(UserError) as caught, user_errors("save the thing", tmp_path / "x", "the rest is intact"):
        raise OSError(number, "whatever")
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"cannot save the thing at {tmp_path / 'x'}: ")
    assert message.endswith("; the rest is intact")
    assert "\n" not in message


def test_other_errors_and_user_errors_pass_unchanged():
    with pytest.raises(ZeroDivisionError), user_errors("divide", "x"):
        _ = 1 / 0
    with pytest.raises(UserError, match=r"^mine$"), user_errors("divide", "x"):
        raise UserError("mine")


def test_write_text_replaces_the_file_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwei ä")
    assert path.read_text(encoding="utf-8") == "zwei ä"
    assert [one.name for one in path.parent.iterdir()] == ["a.txt"]


def test_write_text_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(TypeError):
        write_text(path, b"new")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_exit_codes(capsys, tmp_path):
    def fails(error):
        def command():
            raise error

        return command

    assert exit_code_of(lambda: None) == 0
    assert exit_code_of(lambda: 3) == 3
    assert exit_code_of(fails(UserError("two\nlines"))) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert exit_code_of(fails(KeyboardInterrupt())) == 130
    assert exit_code_of(fails(FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "gone")))) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        exit_code_of(fails(ZeroDivisionError()))


def test_a_closed_stdout_gives_no_traceback():
    code = (
        "import sys\nfrom paw_fast.runs.atomic_files import exit_code_of\n"
        "def command():\n    for i in range(100000): print('line', i)\n"
        "sys.exit(exit_code_of(command))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_permission_to_write_is_named_for_writing_alone(tmp_path, monkeypatch, capsys):
    """The permissions themselves cannot be tested: root has them all."""
    path = tmp_path / "mine.txt"
    path.write_text("mine")

    def denied():
        raise PermissionError(13, "Permission denied", str(path))

    for action, words in (("read the corpus", "no permission to read it"), ("save it", "no permission to write there")):
        with pytest.raises(UserError, match=f"cannot {action} at .*: {words}"), user_errors(action, path):
            denied()
    for readable, words in ((False, "no permission to read it"), (True, "no permission to write there")):
        monkeypatch.setattr("os.access", lambda path, mode, readable=readable: readable)
        assert exit_code_of(denied) == 2
        assert f"{path}: {words}" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_a_mount_that_has_vanished_is_one_line(capsys, number):
    def command():
        raise OSError(number, os.strerror(number), "/mnt/runs/a")

    assert exit_code_of(command) == 2
    assert f"error: /mnt/runs/a: its disk or network mount does not answer ({os.strerror(number)})" in (
        capsys.readouterr().err
    )
    with pytest.raises(OSError, match=os.strerror(number)):  # of a socket, say
        exit_code_of(lambda: (_ for _ in ()).throw(OSError(number, os.strerror(number))))


def test_what_utf8_cannot_encode_is_escaped(tmp_path):
    write_text(tmp_path / "text", "a\udce9\u65e5")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "a\\udce9\u65e5"


def test_a_build_under_way_is_not_removed_when_the_clock_is_set_forward(tmp_path):
    """`os.utime` moves the folders' times back, as a jump of the clock by a week would make them look."""
    left = tmp_path / ".making-left"
    left.mkdir()

    def outer(hidden):
        for path in (left, hidden):
            os.utime(path, (time.time() - 7 * 86400,) * 2)
        build_folder(tmp_path / "other", lambda folder: (folder / "b").touch())
        assert not left.exists()
        (hidden / "a").touch()

    build_folder(tmp_path / "mine", outer)
    assert sorted(os.listdir(tmp_path)) == ["mine", "other"]
    assert os.listdir(tmp_path / "mine") == ["a"]
