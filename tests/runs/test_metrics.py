"""Metrics: the files, what interruptions leave of them, stage times that add up, Wilson's interval by hand."""

import json
import math
import re
import resource
import struct
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

import paw_fast.runs.metrics as metrics
from paw_fast.errors import UserError
from paw_fast.runs.metrics import (
    MetricsWriter,
    StageTimer,
    check_name,
    peak_memory_bytes,
    read_metrics,
    wilson_interval,
)


def events(run_dir):
    """The TensorBoard events of a run, file after file in the order TensorBoard reads them."""
    found = []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_one_line_a_step_at_once(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        writer.log(1, {"reward/mean": 1.25, "success/rate": 0})
        assert (
            tmp_path / "run" / "metrics.jsonl"
        ).read_text() == '{"step": 1, "reward/mean": 1.25, "success/rate": 0.0}\n'
        writer.log(2, {"success/pick_and_place_simple": 0.5, "time/rollout_s": 3.0})
    assert read_metrics(tmp_path / "run") == [
        {"step": 1, "reward/mean": 1.25, "success/rate": 0.0},
        {"step": 2, "success/pick_and_place_simple": 0.5, "time/rollout_s": 3.0},
    ]


def test_tensorboard_events(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.log(7, {"reward/mean": 1.5, "policy/kl": math.nan})
    first, second = events(tmp_path)
    assert first.file_version == "brain.Event:2"
    assert second.step == 7
    assert [(v.tag, v.simple_value) for v in second.summary.value] == [("reward/mean", 1.5)]


def test_without_tensorboard(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.log(1, {"reward/mean": 1.0})
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_values_that_are_no_numbers_are_null_and_listed(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.log(1, {"reward/mean": math.inf, "policy/kl": math.nan, "wm/loss": 2.0})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"step": 1, "reward/mean": None, "policy/kl": None, "wm/loss": 2.0,
                   "non_finite": ["reward/mean", "policy/kl"]}  # fmt: skip
    (back,) = read_metrics(tmp_path)
    assert math.isnan(back["policy/kl"])
    assert "non_finite" not in back


def test_tensors_and_numpy_scalars_become_numbers(tmp_path):
    import numpy as np
    import torch

    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.log(np.int64(3), {"reward/mean": torch.tensor(0.5), "wm/loss": np.float32(0.25)})
    assert read_metrics(tmp_path) == [{"step": 3, "reward/mean": 0.5, "wm/loss": 0.25}]


def test_resuming_drops_later_steps_and_a_torn_line(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.log(step, {"reward/mean": step, "wm/loss": math.nan if step == 2 else 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 5, "rew')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.log(3, {"reward/mean": 30})
    assert [(row["step"], row["reward/mean"]) for row in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    assert '"wm/loss": null' in (tmp_path / "metrics.jsonl").read_text()
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [3]


def test_resuming_without_metrics_yet(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.log(1, {"reward/mean": 1.0})
    assert len(read_metrics(tmp_path)) == 1


def test_a_run_is_not_overwritten(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.log(1, {"reward/mean": 1.0})
    with pytest.raises(UserError, match="already holds the metrics of a run"):
        MetricsWriter(tmp_path)
    assert len(read_metrics(tmp_path)) == 1


@pytest.mark.parametrize(
    "text", ["garbage\n", "[1]\n", '{"no": 1}\n', '{"step": "x"}\n', "[" * 100_000 + "\n", '{"step": 1e400}\n']
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + text + '\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of metrics"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("value", ['"x"', "[1]", "{}"])
def test_a_value_that_is_no_number_is_named(tmp_path, value):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "wm/loss": {value}}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: .*wm/loss is .*, expected a number or null"):
        read_metrics(tmp_path)


def test_no_metrics_at_all(tmp_path):
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["reward/mean", "success/eval_rate", "success/eval_pick_two", "time/sync_s", "time/step_s"]
)
def test_known_names(name):
    check_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reward/means", "do you mean 'reward/mean'"),
        ("time/rollout", "time/"),
        ("", "unknown"),
        ("success/", "unknown"),
    ],
)
def test_a_misspelt_name_is_refused(tmp_path, name, words):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="unknown metric") as caught:
        writer.log(1, {name: 1.0})
    assert words in str(caught.value)
    assert read_metrics(tmp_path) == []


def test_names_written_in_the_package_are_known():
    folders = "|".join({name.split("/")[0] for name in metrics.METRICS})
    found = set()
    for path in Path(metrics.__file__).parents[1].rglob("*.py"):
        found |= set(re.findall(rf'"((?:{folders})/\w+)"', path.read_text(encoding="utf-8")))
    assert "policy/kl" in found
    for name in found:
        check_name(name)


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.log(1, {"reward/mean": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old[1]))
    try:
        with pytest.raises(UserError, match="cannot write metrics"):
            writer.log(2, {"reward/mean": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    writer.log(2, {"reward/mean": 2.0})
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_wandb_is_handed_the_finite_values(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish")
    )
    fake = types.SimpleNamespace(init=lambda **settings: calls.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricsWriter(tmp_path, wandb={"project": "p"}) as writer:
        writer.log(1, {"reward/mean": 1.0, "wm/loss": math.nan})
    writer.close()
    assert calls == [{"dir": str(tmp_path), "project": "p"}, (1, {"reward/mean": 1.0}), "finish"]


def test_wandb_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'paw-fast\[wandb\]'"):
        MetricsWriter(tmp_path, wandb={})


# ---------------------------------------------------------------------------------------------- stage times


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
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


def test_spans_for_a_trace(clock):
    timer = StageTimer(max_spans=2)
    for stage in ("a", "b", "c"):
        with timer(stage):
            clock.now += 1
    assert [(span.name, span.start_s, span.end_s) for span in timer.spans] == [("b", 1, 2), ("c", 2, 3)]
    (first, _) = timer.chrome_trace()
    assert (first["name"], first["ph"], first["ts"], first["dur"]) == ("b", "X", 1e6, 1e6)
    json.dumps(timer.chrome_trace())


def test_a_stage_that_fails_is_counted(clock):
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


def test_threads_do_not_nest_into_each_other():
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


def test_peak_memory_is_in_bytes():
    assert 10 * 2**20 < peak_memory_bytes() < 2**40


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="read from /proc, which is Linux's")
def test_peak_memory_does_not_begin_with_the_parents():
    """The kernel hands the high-water mark that getrusage shows on to a new program."""
    large = bytearray(b"x") * (400 << 20)
    program = "from paw_fast.runs.metrics import peak_memory_bytes; print(peak_memory_bytes())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(found.stdout) < len(large) / 2


# ---------------------------------------------------------------------------------------------- confidence


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        # 50 of 100: middle 0.51920730, half 1.959964 sqrt(0.0025 + 0.0000960365) = 0.09986273; both / 1.03841459
        (50, 100, 0.403832, 0.596168),
        # 0 of 10: the upper end is z^2/n / (1 + z^2/n) = 0.3841459 / 1.3841459
        (0, 10, 0.0, 0.277533),
        (10, 10, 1 - 0.277533, 1.0),
        # 8 of 10: middle 0.99207294, half 1.959964 sqrt(0.016 + 0.00960365) = 0.31361658; both / 1.3841459
        (8, 10, 0.490162, 0.943318),
        # 1 of 1: 1 / (1 + z^2) = 1 / 4.841459
        (1, 1, 0.206549, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_by_hand(successes, total, low, high):
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("successes", "total"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_interval_refuses(successes, total):
    with pytest.raises(ValueError, match="expected 0 <= successes <= total"):
        wilson_interval(successes, total)
