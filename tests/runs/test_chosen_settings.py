"""Settings that are chosen when a run starts: in its config.toml, kept by a resume; and the engine that sleeps."""

import pytest
from small_runs import resume, train

from paw_fast.config import TrainConfig
from paw_fast.learner import Learner
from paw_fast.rollout.worker import LocalRolloutWorker
from paw_fast.runs import run_dir

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_run_keeps_what_was_chosen_and_the_engine_sleeps_during_updates(model, tmp_path, monkeypatch, capfd):
    """The order of a step, as it is with vLLM on the trainer's GPU: sleep, update, weights."""
    calls = []

    def record(cls, name):
        original = getattr(cls, name)

        def call(self, *args, **more):
            calls.append(name)
            return original(self, *args, **more)

        monkeypatch.setattr(cls, name, call)

    record(LocalRolloutWorker, "sleep")
    record(LocalRolloutWorker, "update_weights")
    record(Learner, "compute_token_stats")
    record(Learner, "update")
    run = tmp_path / "run"
    assert train(model, run, "--steps", 1) == 0
    awake = [name for name in calls if name != "compute_token_stats"]
    assert awake == ["update", "update_weights"]
    said = " ".join(capfd.readouterr().err.split())
    assert "settings for the CPU: --rollout.engine transformers (the device is the CPU), --pipeline sync;" in said
    config = run_dir.load_config(run)
    assert (config.rollout.engine, config.pipeline.name, config.token_budget) == ("transformers", "sync", 8192)
    assert config.model.gradient_checkpointing is False
    notes = [line for line in (run / "config.toml").read_text().splitlines() if line.startswith("# ")]
    assert len(notes) == 2

    calls.clear()
    monkeypatch.setattr(TrainConfig, "vllm_sleeps", property(lambda self: True))
    assert resume(run, "--steps", 2, "--pipeline", "auto") == 0
    stats = [i for i, name in enumerate(calls) if name == "compute_token_stats"]
    assert calls[max(stats) + 1 :] == ["sleep", "update", "update_weights"]
    said = " ".join(capfd.readouterr().err.split())
    assert "settings for the CPU: --pipeline sync;" in said  # only what was left open again
    assert (run / "config.toml").read_text().splitlines()[:2] == notes
