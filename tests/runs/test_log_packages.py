"""`--log tensorboard,wandb,trackio` with the real packages, offline: what is written is read back with their readers.

pip install '.[test,tensorboard,wandb,trackio]' && pytest --slow tests/runs/test_log_packages.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from wandb_records import history

from paw_fast.runs.metrics import read_metrics

MISSING = [name for name in ("tensorboard", "wandb", "trackio") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extras {', '.join(MISSING)}"),
]

TRAIN = """
import os, signal
from paw_fast import train

train(
    "tiny", run_dir="run", steps=4, save_every=2, eval_tasks=2, eval_transitions=4, log="tensorboard,wandb,trackio",
    env={"name": "alfworld", "num_train": 24, "num_unseen": 8, "max_steps": 3},
    rollout={"groups": 2, "group_size": 2, "slots": 4}, algo={"minibatches": 1},
    warm_start={"episodes": 16, "epochs": 1, "layers": 1},
    on_step=lambda step, metrics: os.kill(os.getpid(), signal.SIGKILL) if step == 3 else None,
)
"""
"""Killed after step 3 was logged; the newest checkpoint is that of step 2."""

READ_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage

print(json.dumps({name: SQLiteStorage.get_logs("paw-fast", name) for name in SQLiteStorage.get_runs("paw-fast")}))
"""

BESIDE = """
from pathlib import Path

import trackio
import wandb

from paw_fast.runs.metrics import MetricsWriter

own = wandb.init(project="own", settings=wandb.Settings(console="off"))
other = trackio.init(project="own", name="own", auto_log_cpu=False, auto_log_gpu=False)
own.log({"x": 1.0}, step=0)
with MetricsWriter(Path("run"), ("wandb", "trackio")) as writer:
    writer.log(0, {"reward/mean": 0.25})
own.log({"x": 2.0}, step=1)
trackio.log({"x": 3.0}, step=5)
assert wandb.run is own
own.finish()
trackio.finish()
"""


@pytest.fixture(scope="module")
def contacted():
    """What was said to the proxy that all programs here are told to use: the addresses that they wanted to reach."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(200))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        heard_at = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield heard, heard_at
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture(scope="module")
def start(contacted, tmp_path_factory):
    """Runs Python in a folder, offline, with all caches in a folder of the tests."""
    _, proxy = contacted
    home = tmp_path_factory.mktemp("home")
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "TRACKIO_", "ALFWORLD_"))
    }
    env = env | dict.fromkeys(names, proxy) | {
        "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "WANDB_MODE": "offline", "TRACKIO_DIR": "trackio",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    env.pop("NO_PROXY", None)
    env.pop("no_proxy", None)

    def run(folder, *args, status=0):
        done = subprocess.run([sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    """The folder of a run that was killed and resumed, and the rows of metrics.jsonl as the kill left them."""
    folder = tmp_path_factory.mktemp("logged")
    start(folder, "-c", TRAIN, status=-signal.SIGKILL)
    before = read_metrics(folder / "run")
    assert [row["step"] for row in before] == [0, 1, 2, 3]
    start(folder, "-c", "from paw_fast.cli.main import main; main()", "train", "--resume", "run")
    return folder, before


@pytest.fixture
def rows(trained):
    """The rows of the finished run, each step once."""
    rows = read_metrics(trained[0] / "run")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert len(rows[1]) > 30
    return rows


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(trained, rows):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[0] / "run" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    names = {name for row in rows for name in row} - {"step"}
    assert set(found) == names
    for name in names:  # TensorBoard's values are float32
        assert found[name] == [(row["step"], np.float32(row[name])) for row in rows if name in row], name


def test_wandb(trained, rows):
    """The steps of the killed process are sent again, because wandb had kept them in its buffer."""
    folder = trained[0] / "run" / "wandb"
    (killed,) = folder.glob("killed-offline-run-*/*.wandb")
    (file,) = folder.glob("offline-run-*/*.wandb")
    assert killed.name == file.name  # one id
    assert history(file) == rows
    state = json.loads((trained[0] / "run" / "log_services.json").read_text())
    assert state["wandb"] == {"id": file.stem.removeprefix("run-"), "last_step": 4}


def test_trackio(trained, rows, start):
    """Step 3 is that of the killed process where Trackio had saved it, else that of the resumed one."""
    folder, before = trained
    (logs,) = json.loads(start(folder, "-c", READ_TRACKIO)).values()
    found = [{name: value for name, value in one.items() if name != "timestamp"} for one in logs]
    assert [one["step"] for one in found] == [0, 1, 2, 3, 4]
    assert found[:3] == rows[:3]
    assert found[3] in (rows[3], before[3])
    assert found[4] == rows[4]


def test_repeated_steps_are_the_same_steps(trained, rows):
    """Why a service may keep the step that it has: but for times and memory, the resumed run repeats it bit for bit."""
    times = ("time/", "throughput/", "memory/", "idle/")
    one, other = (
        {name: value for name, value in row.items() if not name.startswith(times)} for row in (trained[1][3], rows[3])
    )
    assert one == other


def test_runs_of_the_calling_program_stay_open(start, tmp_path):
    start(tmp_path, "-c", BESIDE)
    (own,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    (ours,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    assert history(own) == [{"step": 0, "x": 1.0}, {"step": 1, "x": 2.0}]
    assert history(ours) == [{"step": 0, "reward/mean": 0.25}]
    (logs,) = json.loads(start(tmp_path, "-c", READ_TRACKIO)).values()
    assert [(one["step"], one["reward/mean"]) for one in logs] == [(0, 0.25)]
    own_logs = json.loads(start(tmp_path, "-c", READ_TRACKIO.replace('"paw-fast"', '"own"')))
    assert [(one["step"], one["x"]) for one in own_logs["own"]] == [(5, 3.0)]


def test_nothing_was_contacted(contacted, trained, start):
    """A request through the proxy is heard; the programs above made none."""
    heard, _ = contacted
    assert heard == []
    ask = "import urllib.request as r\ntry: r.urlopen('http://example.invalid/asked', timeout=9)\nexcept OSError: pass"
    start(trained[0], "-c", ask)
    assert b"example.invalid/asked" in heard[0]
