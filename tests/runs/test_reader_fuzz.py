"""Fuzzes the readers of files that others may have written: a valid value or a `UserError`, and nothing else."""

import contextlib
import json
import os
import pickle
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paw_fast.config import load_preset, load_toml, to_toml
from paw_fast.errors import UserError
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.runs import run_dir as runs
from paw_fast.runs.checkpoint import Checkpoint, load_checkpoint
from paw_fast.runs.manifest import MANIFEST, faults, seal
from paw_fast.runs.metrics import read_metrics
from paw_fast.runs.report import write_report
from paw_fast.runs.run_data import load_run

FUZZ = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENS = [
    b"", b"{", b"}", b"[" * 5000, b'{"a":' * 3000, b"null", b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 5000, b'"',
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"\\ud800"', b"true", b"[]", b"{}", b"..", b"\n", b"=", b"'''", b"0.5",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def mutated(seed: int, data: bytes) -> bytes:
    """The bytes with one to three parts cut, doubled, flipped or replaced."""
    rng = random.Random(seed)
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 3, 20, len(data))))
        kind = rng.randrange(4)
        if kind == 0:
            data = data[:start] + data[end:]
        elif kind == 1:
            data = data[:end] + data[start:]
        elif kind == 2 and start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
        else:
            data = data[:start] + rng.choice(TOKENS) + data[end:]
    return data


SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint without a model: its state, tensors and manifest."""
    folder = tmp_path / "checkpoints" / "step_000001"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"schema": 1, "step": 1, "extra": {"sampler": {"seed": 0}}}))
    torch.save({"a": torch.ones(3), "b": [1, 2.0]}, folder / "rng.pt")
    seal(folder, sync=False, step=1)
    assert load_checkpoint(tmp_path).step == 1
    return folder


@FUZZ
@given(seed=SEEDS)
def test_any_manifest_is_intact_or_has_faults(checkpoint, seed):
    whole = (checkpoint / MANIFEST).read_bytes()
    (checkpoint / MANIFEST).write_bytes(mutated(seed, whole))
    try:
        assert all(isinstance(one, str) for one in faults(checkpoint))
        with contextlib.suppress(UserError):
            load_checkpoint(checkpoint)
    finally:
        (checkpoint / MANIFEST).write_bytes(whole)


@FUZZ
@given(files=JSON, size=st.integers() | st.floats() | st.text(max_size=3), name=st.text(max_size=10))
def test_any_entries_of_a_manifest(checkpoint, files, size, name):
    whole = (checkpoint / MANIFEST).read_bytes()
    try:
        for entries in (files, {name: files}, {name: {"bytes": size, "sha256": name}}):
            (checkpoint / MANIFEST).write_text(json.dumps({"schema": 1, "files": entries}))
            assert faults(checkpoint)
    finally:
        (checkpoint / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize("name", ["/dev/zero", "../../secret", "a/../../b", ""])
def test_a_manifest_reads_nothing_outside_its_folder(checkpoint, name):
    entry = {"bytes": 0, "sha256": "0" * 64}
    (checkpoint / MANIFEST).write_text(json.dumps({"schema": 1, "files": {name: entry}}))
    assert faults(checkpoint) == [f"manifest.json names a file outside the folder, {name!r}"]


def test_a_manifest_reads_no_pipe_and_no_device(checkpoint):
    os.mkfifo(checkpoint / "pipe")
    (checkpoint / "zero").symlink_to("/dev/zero")
    entry = {"bytes": 0, "sha256": "0" * 64}
    (checkpoint / MANIFEST).write_text(json.dumps({"schema": 1, "files": {"pipe": entry, "zero": entry}}))
    assert {"pipe is not a file", "zero is not a file"} <= set(faults(checkpoint))


@FUZZ
@given(seed=SEEDS, name=st.sampled_from(["state.json", "rng.pt"]))
def test_a_checkpoint_whose_manifest_fits_its_garbage(checkpoint, seed, name):
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(mutated(seed, whole))
    seal(checkpoint, sync=False, step=1)
    try:
        with contextlib.suppress(UserError):
            assert isinstance(load_checkpoint(checkpoint), Checkpoint)
    finally:
        (checkpoint / name).write_bytes(whole)


def test_a_checkpoint_runs_no_code(checkpoint, tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for save in (lambda path: torch.save({"a": Code()}, path), lambda path: path.write_bytes(pickle.dumps(Code()))):
        save(checkpoint / "rng.pt")
        seal(checkpoint, sync=False, step=1)
        with pytest.raises(UserError, match=r"rng\.pt cannot be read"):
            load_checkpoint(checkpoint)
    assert not (tmp_path / "ran").exists()


@FUZZ
@given(value=JSON)
def test_any_state_of_a_checkpoint(checkpoint, value):
    whole = (checkpoint / "state.json").read_bytes()
    try:
        for state in (value, {"step": value, "extra": {}}, {"step": 1, "extra": value}):
            (checkpoint / "state.json").write_text(json.dumps(state))
            seal(checkpoint, sync=False, step=1)
            with contextlib.suppress(UserError):
                assert load_checkpoint(checkpoint).step >= 0
    finally:
        (checkpoint / "state.json").write_bytes(whole)


@FUZZ
@given(seed=SEEDS)
def test_any_config_is_read_or_refused(tmp_path, seed):
    (tmp_path / "config.toml").write_bytes(mutated(seed, to_toml(load_preset("tiny", "alfworld")).encode()))
    for read in (lambda: load_toml(tmp_path / "config.toml"), lambda: runs.load_config(tmp_path)):
        with contextlib.suppress(UserError):
            to_toml(read())


@FUZZ
@given(seed=SEEDS)
def test_any_metrics_are_read_or_refused(tmp_path, seed):
    rows = [{"step": step, "reward/mean": 0.5, "time/step_s": None, "non_finite": ["time/step_s"]} for step in range(4)]
    (tmp_path / "metrics.jsonl").write_bytes(mutated(seed, "".join(json.dumps(row) + "\n" for row in rows).encode()))
    with contextlib.suppress(UserError):
        assert all(isinstance(row["step"], int) for row in read_metrics(tmp_path))


@FUZZ
@given(seed=SEEDS, value=JSON)
def test_any_summary_is_read_or_refused(tmp_path, seed, value):
    summary = json.dumps({"steps": 3, "final_success": 0.5, "wall_time_s": 2.0}).encode()
    for data in (mutated(seed, summary), json.dumps(value).encode(), json.dumps({"wall_time_s": value}).encode()):
        (tmp_path / "summary.json").write_bytes(data)
        with contextlib.suppress(UserError):
            run = load_run(tmp_path)
            assert run.wall_time_s is None or run.wall_time_s == run.wall_time_s
            run.evaluations()
        with contextlib.suppress(UserError):
            assert isinstance(runs.read_json(tmp_path / "summary.json"), dict)


@settings(FUZZ, max_examples=8)
@given(value=JSON)
def test_a_report_of_any_summary(tmp_path, value):
    keys = ("warm_start_success", "final_success", "final_eval", "num_parameters", "steps", "eval_split", "seed")
    (tmp_path / "summary.json").write_text(json.dumps(dict.fromkeys(keys, value)))
    with contextlib.suppress(UserError):
        write_report([tmp_path])


@FUZZ
@given(seed=SEEDS)
def test_any_template_is_read_or_refused(tmp_path, seed):
    from importlib import resources

    folder = resources.files("paw_fast.rollout") / "templates"
    source = next(one for one in sorted(folder.iterdir(), key=lambda one: one.name) if one.name.endswith(".toml"))
    path = tmp_path / "mine.toml"
    path.write_bytes(mutated(seed, source.read_bytes()))
    with contextlib.suppress(UserError):
        PromptTemplate.load(str(path), "alfworld")
