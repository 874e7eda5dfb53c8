"""Signals that ask for a stop: what the handler does, who checks it, what children do, and a screen that has gone."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from paw_fast.config import load_preset
from paw_fast.rollout.factory import make_env
from paw_fast.runs import stop_signals

QUIET = lambda text: None  # noqa: E731


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75)],
)
def test_the_first_signal_asks_for_a_stop_at_the_next_check(signum, status):
    before = signal.getsignal(signum)
    said = []
    with stop_signals.handled(said.append):
        stop_signals.check()
        signal.raise_signal(signum)
        with pytest.raises(stop_signals.Interrupted) as stop:
            stop_signals.check()
        assert stop.value.status == status
    assert len(said) == 1
    assert (signal.Signals(signum).name in said[0]) == (signum != signal.SIGINT)
    assert signal.getsignal(signum) is before
    stop_signals.check()  # a stop that was asked for ends with its block


def test_a_stop_waits_for_the_end_of_a_deferred_block():
    with stop_signals.handled(QUIET):
        with stop_signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            with stop_signals.deferred():
                stop_signals.check()
            stop_signals.check()
        with pytest.raises(stop_signals.Interrupted):
            stop_signals.check()


def test_a_second_ctrl_c_quits_at_once_and_other_signals_do_not():
    with stop_signals.handled(QUIET):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_inner_blocks_leave_the_outer_one_alone():
    with stop_signals.handled(QUIET):
        with stop_signals.handled(QUIET):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(stop_signals.Interrupted):
            stop_signals.check()


def test_ctrl_c_works_where_it_is_inherited_as_ignored_and_nohup_stays():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals.handled(QUIET):
            signal.raise_signal(signal.SIGHUP)
            stop_signals.check()
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(stop_signals.Interrupted):
                stop_signals.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stop_signals.handled(QUIET):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_games_are_left_half_generated_and_their_folder_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    env = make_env(load_preset("tiny").env)
    with stop_signals.handled(QUIET):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(stop_signals.Interrupted):
            env.tasks("train")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_child_ignores_what_its_parent_handles_from_its_first_moment():
    program = (
        "import sys, time; from paw_fast import stopping\n"
        "stopping.leave_to_parent(); print('ready', flush=True); sys.stdin.readline(); print('alive')"
    )
    pipe = subprocess.PIPE
    with stop_signals.held_back():
        child = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True)
    for signum in stop_signals.SIGNALS:  # before it has said that it ignores them
        child.send_signal(signum)
    assert child.stdout.readline() == "ready\n"
    for signum in stop_signals.SIGNALS:
        child.send_signal(signum)
    out, _ = child.communicate("\n", timeout=60)
    assert (out, child.returncode) == ("alive\n", 0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_screen_that_has_gone_stops_nothing():
    """As after a lost connection: nobody reads stderr any more."""
    program = (
        "import sys; from paw_fast import console\n"
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
