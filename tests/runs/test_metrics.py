"""Tests of metrics: the files, what is left of them after an interruption, peak memory."""

import json
import math
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

import paw_fast.runs.metrics as metrics
from paw_fast.errors import UserError
from paw_fast.runs.metrics import MetricsWriter, check_name, peak_memory_bytes, read_metrics


def events(run_dir):
    """Returns the TensorBoard events of a run, in the order in which TensorBoard reads them."""
    found = []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_each_step_is_one_line_and_is_flushed(tmp_path):
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
    with MetricsWriter(tmp_path, ()) as writer:
        writer.log(1, {"reward/mean": 1.0})
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_non_finite_values_become_null_and_are_listed(tmp_path):
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

    with MetricsWriter(tmp_path, ()) as writer:
        writer.log(np.int64(3), {"reward/mean": torch.tensor(0.5), "wm/loss": np.float32(0.25)})
    assert read_metrics(tmp_path) == [{"step": 3, "reward/mean": 0.5, "wm/loss": 0.25}]


def test_resuming_drops_later_steps_and_an_incomplete_line(tmp_path):
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
    with pytest.raises(UserError, match="already contains the metrics of a run"):
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
def test_a_value_that_is_not_a_number_is_named(tmp_path, value):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "wm/loss": {value}}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: .*wm/loss is .*, expected a number or null"):
        read_metrics(tmp_path)


def test_reading_without_a_file_returns_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["reward/mean", "success/eval_rate", "success/eval_pick_two", "time/sync_s", "time/step_s"]
)
def test_known_names(name):
    check_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reward/means", "did you mean 'reward/mean'"),
        ("time/rollout", "time/"),
        ("", "unknown"),
        ("success/", "unknown"),
    ],
)
def test_an_unknown_name_is_refused(tmp_path, name, words):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="unknown metric") as caught:
        writer.log(1, {name: 1.0})
    assert words in str(caught.value)
    assert read_metrics(tmp_path) == []


def test_names_used_in_the_package_are_known():
    folders = "|".join({name.split("/")[0] for name in metrics.METRICS})
    found = set()
    for path in Path(metrics.__file__).parents[1].rglob("*.py"):
        if "integrations" in path.parts:  # metrics that other trainers log
            continue
        found |= set(re.findall(rf'"((?:{folders})/\w+)"', path.read_text(encoding="utf-8")))
    assert "policy/kl" in found
    found -= {"text/plain", "text/html"}  # MIME types
    for name in found:
        check_name(name)


def test_a_line_that_does_not_fit_is_not_written_partially(tmp_path):
    writer = MetricsWriter(tmp_path, ())
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


def test_peak_memory_is_in_bytes():
    assert 10 * 2**20 < peak_memory_bytes() < 2**40


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_excludes_the_parent_process():
    """The maximum that getrusage reports is inherited by a new program."""
    large = bytearray(b"x") * (400 << 20)
    program = "from paw_fast.runs.metrics import peak_memory_bytes; print(peak_memory_bytes())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(found.stdout) < len(large) / 2


def test_events_stay_in_order_when_the_clock_is_set_back(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path) as writer:
        writer.log(1, {"reward/mean": 1.0})
        writer.log(2, {"reward/mean": 2.0})
    monkeypatch.setattr("time.time_ns", lambda: 1_000_000_000)
    with MetricsWriter(tmp_path, resume_step=1) as writer:
        writer.log(2, {"reward/mean": 3.0})
    assert [event.step for event in events(tmp_path) if event.HasField("summary")] == [1, 2, 2]


def test_a_folder_whose_mount_vanishes_stops_the_run(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting needs root")
    try:
        writer = MetricsWriter(disk / "run")
        writer.log(1, {"reward/mean": 1.0})
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    with pytest.raises(UserError, match="was moved, replaced or deleted while the run was writing to it"):
        writer.log(2, {"reward/mean": 1.0})
    writer.close()
    assert list(disk.iterdir()) == []
