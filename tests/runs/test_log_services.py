"""Metrics at Weights & Biases and Trackio, with the real packages where they are installed: offline and local."""

import importlib.util
import json
import math

import pytest

from paw_fast.config import load_toml
from paw_fast.config.renames import rename_options
from paw_fast.config.services import log_services
from paw_fast.errors import UserError
from paw_fast.runs import log_services as module
from paw_fast.runs.log_services import LogServices, check_services
from paw_fast.runs.metrics import MetricsWriter, read_metrics


class FakeRun:
    """A run at a service: keeps what it was sent."""

    def __init__(self):
        self.sent, self.finished = [], 0

    def log(self, metrics, step):
        self.sent.append((step, metrics))

    def finish(self):
        self.finished += 1


@pytest.fixture
def services(monkeypatch):
    """Both services faked; the ids and settings with which they were started."""
    started: list[tuple[str, str, dict, FakeRun]] = []

    def starter(name):
        def start(run_dir, id, settings):
            run = FakeRun()
            started.append((name, id, settings, run))
            return run

        return start

    monkeypatch.setattr(module, "_start_wandb", starter("wandb"))
    monkeypatch.setattr(module, "_start_trackio", starter("trackio"))
    return started


def test_finite_values_and_settings_are_sent(tmp_path, services):
    (tmp_path / "config.toml").write_text("seed = 3\n[optim]\nlearning_rate = 0.5\n")
    with MetricsWriter(tmp_path, ("wandb", "trackio")) as writer:
        writer.log(1, {"reward/mean": 1.0, "wm/loss": math.nan})
    writer.close()
    assert [name for name, *_ in services] == ["wandb", "trackio"]
    for _, _, settings, run in services:
        assert settings == {"seed": 3, "optim": {"learning_rate": 0.5}}
        assert run.sent == [(1, {"reward/mean": 1.0})]
        assert run.finished == 1
    assert not (tmp_path / "tensorboard").exists()


def test_a_resumed_run_sends_no_step_twice_and_none_too_few(tmp_path, services):
    """Killed after step 3, resumed from the checkpoint of step 1 with a further service."""
    writer = MetricsWriter(tmp_path, ("wandb",))
    for step in range(4):
        writer.log(step, {"reward/mean": float(step)})
    writer._handle.close()  # as a kill does: the services are not closed
    with MetricsWriter(tmp_path, ("wandb", "trackio"), resume_step=1) as writer:
        for step in range(2, 6):
            writer.log(step, {"reward/mean": float(step)})
    (_, first_id, _, first), (_, second_id, _, second), (_, _, _, new) = services
    assert first_id == second_id
    assert [step for step, _ in first.sent] == [0, 1, 2, 3]
    assert [step for step, _ in second.sent] == [4, 5]
    assert new.sent == [(step, {"reward/mean": float(step)}) for step in range(6)]
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(6))


def test_a_service_that_refuses_is_one_line(tmp_path, monkeypatch):
    def refuse(*args):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(module, "_start_wandb", refuse)
    with pytest.raises(UserError, match=r"^--log wandb: no network$"):
        LogServices(tmp_path, ["wandb"])
    (tmp_path / module.STATE).write_text('{"wandb": 3}')
    with pytest.raises(UserError, match="remove it to begin new runs"):
        LogServices(tmp_path, ["wandb"])


def test_checks_before_a_run(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trackio" else find(name))
    with pytest.raises(UserError, match="--log trackio needs trackio, which is not installed: pip install"):
        check_services(["tensorboard", "trackio"])
    check_services(["tensorboard"])


def test_no_key_is_told_before_a_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="no API key: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"):
        check_services(["wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_services(["wandb"])


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch):
    """The files that wandb keeps for a later `wandb sync` hold each step once over both parts of the run."""
    pytest.importorskip("wandb", reason="needs the extra wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run_twice(tmp_path, "wandb")
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1  # one id
    found = []
    for path in files:
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                found.append((items["_step"], items["reward/mean"]))
    assert found == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.filterwarnings("ignore")
def test_trackio_on_this_machine(tmp_path, monkeypatch, capsys):
    pytest.importorskip("trackio", reason="needs the extra trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    run_twice(tmp_path, "trackio")
    names = SQLiteStorage.get_runs("paw-fast")
    assert len(names) == 1, names
    logs = SQLiteStorage.get_logs("paw-fast", names[0])
    assert [(one["step"], one["reward/mean"]) for one in logs] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def run_twice(folder, service):
    """Steps 0 to 2, then from the checkpoint of step 1 to step 3."""
    with MetricsWriter(folder, (service,)) as writer:
        for step in range(3):
            writer.log(step, {"reward/mean": float(step)})
    with MetricsWriter(folder, (service,), resume_step=1) as writer:
        for step in (2, 3):
            writer.log(step, {"reward/mean": float(step)})


def test_names():
    assert log_services("tensorboard") == ("tensorboard",)
    assert log_services("") == log_services("None") == ()
    with pytest.raises(UserError, match="no service 'wandbb'; did you mean wandb"):
        log_services("tensorboard,wandbb")


def test_the_old_switch_still_works(tmp_path, caplog):
    """`--wandb` and `wandb = true` of the last release, for one release."""
    args = ["--steps", "3", "--wandb", "--seed", "1"]
    rename_options(args)
    assert args == ["--steps", "3", "--log", "tensorboard,wandb", "--seed", "1"]
    assert "is now called --log tensorboard,wandb" in caplog.text
    args = ["--no-wandb"]
    rename_options(args)
    assert args == []
    with pytest.raises(UserError, match="both are given"):
        rename_options(["--wandb", "--log=trackio"])
    file = tmp_path / "mine.toml"
    file.write_text("wandb = false\n")
    assert load_toml(file).log == "tensorboard"
    file.write_text("wandb = true\n")
    assert load_toml(file).log == "tensorboard,wandb"
    assert "wandb is now called log" in caplog.text
    file.write_text('wandb = true\nlog = "trackio"\n')
    with pytest.raises(UserError, match="both are given"):
        load_toml(file)
