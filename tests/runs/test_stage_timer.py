"""Tests of stage times: they add up to the step, nest per thread and survive errors."""

import threading
import time

import pytest

from paw_fast.runs import stage_timer
from paw_fast.runs.stage_timer import StageTimer


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stage_timer, "time", clock)
    return clock


def test_stage_times_add_up(clock):
    timer = StageTimer()
    with timer("rollout"):
        clock.now += 2
        with timer("env"):
            clock.now += 3
        with timer("env"):
            clock.now += 1
        clock.now += 0.5
    clock.now += 0.25
    with timer("update"):
        clock.now += 4
    times = timer.take()
    assert times == {
        "time/env_s": 4.0, "time/rollout_s": 2.5, "time/update_s": 4.0, "time/other_s": 0.25, "time/step_s": 10.75,
    }  # fmt: skip
    assert sum(value for name, value in times.items() if name != "time/step_s") == times["time/step_s"]
    assert timer.take() == {"time/other_s": 0.0, "time/step_s": 0.0}


def test_only_the_last_spans_are_kept(clock):
    timer = StageTimer(max_spans=2)
    for stage in ("a", "b", "c"):
        with timer(stage):
            clock.now += 1
    assert [(span.name, span.start_s, span.end_s) for span in timer.spans] == [("b", 1, 2), ("c", 2, 3)]


def test_a_stage_that_raises_is_counted(clock):
    timer = StageTimer()

    def fail():
        with timer("outer"), timer("inner"):
            clock.now += 1
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert timer.take()["time/inner_s"] == 1.0
    with timer("after"):
        clock.now += 1
    assert timer.take()["time/after_s"] == 1.0


def test_stages_nest_per_thread():
    timer = StageTimer()

    def work():
        with timer("thread"):
            time.sleep(0.05)

    with timer("main"):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    times = timer.take()
    assert times["time/thread_s"] >= 0.2
    assert times["time/main_s"] >= 0.05
    assert times["time/other_s"] == 0.0
    assert len({span.thread for span in timer.spans}) >= 2
