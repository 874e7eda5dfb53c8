"""What is sent to Weights & Biases and Trackio, and when. `test_log_packages.py` has the real packages."""

import importlib.util
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
        def start(run_dir, about, settings):
            run = FakeRun()
            started.append((name, about["id"], settings, run))
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


def test_a_service_tells_what_it_has(tmp_path, services, monkeypatch):
    """Killed after step 3 was sent, of which the service has steps 0 and 1 alone."""
    writer = MetricsWriter(tmp_path, ("wandb",))
    for step in range(4):
        writer.log(step, {"reward/mean": float(step)})
    writer._handle.close()
    run = FakeRun()

    def start(run_dir, about, settings):
        assert about["last_step"] == 3
        about["last_step"] = 1
        return run

    monkeypatch.setattr(module, "_start_wandb", start)
    with MetricsWriter(tmp_path, ("wandb",), resume_step=2) as writer:
        writer.log(3, {"reward/mean": 3.0})
    assert [step for step, _ in run.sent] == [2, 3]


def test_a_service_that_fails_does_not_end_the_run(tmp_path, services, caplog, capsys):
    """It is left out with one warning, the other goes on, and a resumed run sends what is missing."""
    writer = MetricsWriter(tmp_path, ("wandb", "trackio"))
    writer.log(0, {"reward/mean": 0.0})
    broken = services[0][3]

    def fail(*args, **kwargs):
        raise ConnectionError("the service\nis gone")

    broken.log = fail
    for step in (1, 2):
        writer.log(step, {"reward/mean": float(step)})
    services[1][3].finish = fail
    writer.close()
    said = capsys.readouterr()
    said = said.out + said.err
    assert said.count("--log wandb failed at step 1") == 1
    assert "the service is gone" in " ".join(said.split())
    assert "warning: --log trackio: the service is gone" in " ".join(said.split())
    assert [step for step, _ in services[1][3].sent] == [0, 1, 2]
    with MetricsWriter(tmp_path, ("wandb",), resume_step=2):
        pass
    assert [step for step, _ in services[2][3].sent] == [1, 2]


def test_incomplete_files_of_a_killed_process_are_set_aside(tmp_path):
    """The folder that a killed process wrote does not reach `wandb sync`; its steps count as not sent."""
    (tmp_path / "wandb" / "offline-run-1-abc").mkdir(parents=True)
    about = {"id": "abc", "last_step": 7, "unfinished": {"folder": "../offline-run-1-abc", "after_step": 4}}
    module._set_aside(tmp_path / "wandb", about)
    assert about == {"id": "abc", "last_step": 4}
    assert [path.name for path in (tmp_path / "wandb").iterdir()] == ["killed-offline-run-1-abc"]
    module._set_aside(tmp_path / "wandb", about)
    assert about["last_step"] == 4


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
