"""Tests of stop signals: the handler, the checks, child processes, and output to a closed terminal."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from paw_fast.config import load_preset
from paw_fast.rollout.factory import make_env
from paw_fast.runs import stop_signals

NO_OUTPUT = lambda text: None  # noqa: E731


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75)],
)
def test_the_first_signal_stops_at_the_next_check(signum, status):
    before = signal.getsignal(signum)
    messages = []
    with stop_signals.handled(messages.append):
        stop_signals.check()
        signal.raise_signal(signum)
        with pytest.raises(stop_signals.Interrupted) as stop:
            stop_signals.check()
        assert stop.value.status == status
    assert len(messages) == 1
    assert (signal.Signals(signum).name in messages[0]) == (signum != signal.SIGINT)
    assert signal.getsignal(signum) is before
    stop_signals.check()  # the request ends with its block


def test_a_stop_waits_for_the_end_of_a_deferred_block():
    with stop_signals.handled(NO_OUTPUT):
        with stop_signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            with stop_signals.deferred():
                stop_signals.check()
            stop_signals.check()
        with pytest.raises(stop_signals.Interrupted):
            stop_signals.check()


def test_a_second_ctrl_c_quits_at_once_and_other_signals_do_not():
    with stop_signals.handled(NO_OUTPUT):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_inner_blocks_have_no_effect():
    with stop_signals.handled(NO_OUTPUT):
        with stop_signals.handled(NO_OUTPUT):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(stop_signals.Interrupted):
            stop_signals.check()


def test_inherited_ignored_signals_ctrl_c_works_and_sighup_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals.handled(NO_OUTPUT):
            signal.raise_signal(signal.SIGHUP)
            stop_signals.check()
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(stop_signals.Interrupted):
                stop_signals.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_other_threads_install_no_handler():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stop_signals.handled(NO_OUTPUT):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_interrupted_game_generation_removes_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    env = make_env(load_preset("tiny").env)
    with stop_signals.handled(NO_OUTPUT):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(stop_signals.Interrupted):
            env.tasks("train")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".train.lock"]


def test_a_child_ignores_signals_from_its_start():
    program = (
        "import sys, time; from paw_fast.runs import stop_signals\n"
        "stop_signals.ignore_in_child(); print('ready', flush=True); sys.stdin.readline(); print('alive')"
    )
    pipe = subprocess.PIPE
    with stop_signals.blocked():
        child = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True)
    for signum in stop_signals.SIGNALS:  # while they are still blocked
        child.send_signal(signum)
    assert child.stdout.readline() == "ready\n"
    for signum in stop_signals.SIGNALS:
        child.send_signal(signum)
    out, _ = child.communicate("\n", timeout=60)
    assert (out, child.returncode) == ("alive\n", 0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_output_to_a_closed_terminal_is_ignored():
    """As after a lost connection: nothing reads stderr any more."""
    program = (
        "import sys; from paw_fast.runs import console\n"
        "sys.stdin.readline()\n"
        "for _ in range(3): console.say('x' * 100)\n"
        "print('alive')"
    )
    ours, theirs = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    os.close(ours)
    out, _ = child.communicate("\n", timeout=60)
    assert (out, child.returncode) == ("alive\n", 0)
