"""Tests of idle shares against values computed by hand, and of the trace file."""

import json
import time

import pytest

from paw_fast.errors import UserError
from paw_fast.runs.stage_timer import StageTimer
from paw_fast.runs.trace import TraceFile, covered_s, idle_shares


def test_overlapping_spans_count_once():
    spans = [("prompt", 1.0, 4.0), ("environment", 2.0, 3.0), ("generate", 4.0, 5.0), ("generate", 7.0, 7.5)]
    assert covered_s(spans) == pytest.approx(4.5)
    assert covered_s([]) == 0


def test_idle_shares_by_hand():
    times = {"time/step_s": 10.0, "time/score_s": 1.0, "time/update_s": 5.0, "time/sync_s": 2.0, "time/wait_s": 2.0}
    spans = {"generator 0": [("generate", 0.0, 9.0)], "generator 1": [("generate", 0.0, 5.0)]}
    assert idle_shares(times, spans) == pytest.approx({"idle/trainer": 0.2, "idle/generator": 0.3})
    inline = times | {"time/generate_s": 1.0, "time/environment_s": 0.5, "time/prompt_s": 0.5}
    assert idle_shares(inline, {})["idle/generator"] == pytest.approx(0.8)


def test_evaluations_are_excluded_from_idle_shares():
    """A step of 10 s that includes an evaluation of 4 s.

    The worker in another process is busy for 2 s of the step and for the whole evaluation. In this process, 1 s of the
    evaluation is timed as `evaluate` and the other 3 s as `generate`.
    """
    times = {"time/step_s": 10.0, "time/update_s": 3.0, "time/evaluate_s": 4.0, "time/wait_s": 3.0}
    evaluated = [("evaluate", 5.0, 9.0)]
    spans = {"generator 0": [("generate", 0.0, 2.0), ("generate", 5.0, 9.0)]}
    assert idle_shares(times, spans, evaluated) == pytest.approx({"idle/trainer": 0.5, "idle/generator": 4 / 6})
    inline = {"time/step_s": 10.0, "time/update_s": 3.0, "time/evaluate_s": 1.0, "time/generate_s": 3.0 + 2.0}
    assert idle_shares(inline, {}, evaluated) == pytest.approx({"idle/trainer": 0.5, "idle/generator": 4 / 6})


def test_processes_share_one_clock_in_the_trace(tmp_path):
    timer, trace = StageTimer(), TraceFile(tmp_path / "trace.json")
    for _ in range(2):
        with timer("update"):
            start = time.perf_counter()
            time.sleep(0.01)
        trace.add(timer, {"generator 0": [("generate", start, start + 0.01)]})
    events = json.loads((tmp_path / "trace.json").read_text())
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert sorted(names.values()) == ["generator 0", "trainer"]
    rows = [(names[e["pid"]], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    updates = [r for r in rows if r[1] == "update"]
    generated = [r for r in rows if r[1] == "generate"]
    assert len(updates) == len(generated) == 2
    for (_, _, ts, dur), (_, _, other, _) in zip(updates, generated, strict=True):
        assert ts <= other <= ts + dur


def test_the_trace_is_valid_after_each_step_and_only_grows(tmp_path):
    path = tmp_path / "trace.json"
    timer, trace = StageTimer(), TraceFile(path)
    before = b""
    for step in range(1, 4):
        with timer("update"):
            pass
        trace.add(timer, {"generator 0": [("generate", 0.0, 1.0)]} if step > 1 else {})
        text = path.read_bytes()
        events = json.loads(text)
        assert sum(e["name"] == "update" for e in events) == step
        assert text.startswith(before)
        before = text.removesuffix(b"\n]\n")
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["trainer", "generator 0"]
    trace.add(timer, {})
    assert json.loads(path.read_bytes()) == events


def test_a_trace_that_cannot_be_written_is_a_user_error(tmp_path):
    timer, trace = StageTimer(), TraceFile(tmp_path / "trace.json")
    trace.add(timer, {})
    (tmp_path / "trace.json").unlink()
    with pytest.raises(UserError, match=r"trace\.json"):
        trace.add(timer, {"generator 0": [("generate", 0.0, 1.0)]})
