"""The Python API on runs of seconds: results, callbacks, interrupts, threads, mistakes."""

import dataclasses
import signal
import subprocess
import sys
import threading

import pytest

import paw_fast
from paw_fast import TrainConfig, TrainResult, UserError, evaluate, make_config, train
from paw_fast.runs import stop_signals
from paw_fast.runs.live_curve import LiveCurve, curve_png
from paw_fast.runs.metrics import read_metrics

SMALL = {
    "steps": 2, "eval_tasks": 4, "eval_transitions": 8, "save_every": 1,
    "env": {"name": "alfworld", "num_train": 24, "num_unseen": 8, "max_steps": 3},
    "rollout": {"groups": 2, "group_size": 2, "slots": 4}, "algo": {"minibatches": 1},
    "warm_start": {"episodes": 16, "epochs": 1, "layers": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "api-cache"))
    for name in ("ALFWORLD_DATA", "WEBSHOP_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.fixture(scope="module")
def result(tmp_path_factory, seen):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "api-cache"))
        patch.delenv("ALFWORLD_DATA", raising=False)
        config = make_config("tiny", **SMALL)
        return train(config, run_dir=tmp_path_factory.mktemp("api") / "run", on_step=lambda *one: seen.append(one))


def numbers(rows):
    skip = ("time/", "throughput/", "memory/", "idle/")
    return [{k: v for k, v in row.items() if not k.startswith(skip)} for row in rows]


def test_a_run_from_python(result, seen):
    assert result.finished
    assert result.checkpoint == result.run_dir / "checkpoints" / "step_000002"
    assert [row["step"] for row in result.metrics] == [0, 1, 2]
    assert result.metrics == read_metrics(result.run_dir)
    assert result.success == result.summary["final_success"] == result.metrics[-1]["success/eval_rate"]
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[2][1] == {name: value for name, value in result.metrics[2].items() if name != "step"}
    assert "metrics" not in repr(result)


def test_evaluate_gives_the_figures_of_the_run(result):
    again = evaluate(result, tasks=4, world_model=True)
    assert again.as_json() == result.summary["final_eval"]
    assert again.world_model is not None
    assert again.world_model.num_transitions > 0
    assert evaluate(result.checkpoint, tasks=4).success == result.success


def test_stopped_in_every_way_and_resumed(result, tmp_path, monkeypatch):
    """By the callback in a thread, where no signal handler can be set; by SIGINT, as a notebook's interrupt; by an
    error of the callback. The run goes on to the metrics of one that was left alone."""
    monkeypatch.setattr("paw_fast.runs.resume.write_report", lambda run_dirs: None)  # half of the time
    found = []

    def work():
        try:
            found.append(train("tiny", **SMALL, run_dir=tmp_path / "run", on_step=lambda step, _: True))
        except BaseException as error:  # shown by the assertions
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    part = found[0]
    assert isinstance(part, TrainResult), part
    assert not part.finished
    assert [row["step"] for row in part.metrics] == [0]

    before = signal.getsignal(signal.SIGINT)
    part = train(resume=part.run_dir, on_step=lambda step, _: signal.raise_signal(signal.SIGINT))
    assert not part.finished
    assert part.checkpoint is not None
    assert part.checkpoint.name == "step_000001"
    assert signal.getsignal(signal.SIGINT) == before

    def fail(step, metrics):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        train(resume=part.run_dir, on_step=fail)
    whole = train(resume=part.run_dir)
    assert whole.finished
    assert numbers(whole.metrics) == numbers(result.metrics)
    assert not stop_signals._installed


def test_the_live_figure(result, monkeypatch):
    """Updated in place, at most once a second between evaluations, with a text for where images are not shown."""
    display = pytest.importorskip("IPython.display", reason="needs IPython")
    shown, now = [], [0.0]

    class Handle:
        def update(self, data, raw):
            shown.append(("update", data))

    def show(data, raw, display_id):
        shown.append(("new", data))
        return Handle()

    monkeypatch.setattr(display, "display", show)
    curve = LiveCurve(result.run_dir, clock=lambda: now[0])
    curve(1, {"success/rate": 0.25})
    now[0] = 0.5
    curve(2, {"success/rate": 0.25})  # too early
    curve(3, {"success/rate": 0.25, "success/eval_rate": 0.5})
    now[0] = 1.6
    curve(4, {"success/rate": 0.75})
    assert [(kind, data["text/plain"][:6]) for kind, data in shown] == [
        ("new", "step 1"), ("update", "step 3"), ("update", "step 4"),
    ]  # fmt: skip
    png = curve_png(result.run_dir)
    assert png is not None
    assert png.startswith(b"\x89PNG")


def test_configs():
    config = make_config("tiny", env="webshop", **{"rollout.groups": 3, "optim": {"learning_rate": 1}})
    assert (config.env.name, config.rollout.groups, config.optim.learning_rate) == ("webshop", 3, 1.0)
    assert make_config("tiny", algo={"name": "gigpo", "step_weight": 0.5}).algo.name == "gigpo"
    assert make_config("tiny", algo="ppo", critic={"value_clip": None}).critic.value_clip is None
    assert make_config("tiny", model="smollm2-135m").model.path == "smollm2-135m"
    assert isinstance(make_config("tiny"), TrainConfig)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stpes": 2}, "unknown key 'stpes'; did you mean 'steps'"),
        ({"rollout": {"grups": 2}}, "rollout: unknown key 'grups'; did you mean 'groups'"),
        ({"steps": "many"}, "steps is 'many', expected an integer"),
        ({"seed": -1}, "--seed is -1"),
        ({"env": "alfwrld"}, "no such environment; did you mean alfworld"),
        ({"env": {"name": 3}}, "env is 3"),
        ({"steps": 3, "steps.x": 3}, "steps is given as a value and as a table"),
        ({"preset": "tny"}, "did you mean 'tiny'"),
    ],
)
def test_mistakes_in_settings(settings, message):
    with pytest.raises(UserError, match=message):
        make_config(**settings)


def test_mistakes_begin_nothing(result, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        train("tiny", **SMALL | {"model": "./no/such/model"}, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match="leave config out"):
        train("tiny", resume=tmp_path / "run")
    with pytest.raises(UserError, match="not a run directory"):
        train(resume=tmp_path / "run")
    with pytest.raises(UserError, match="--seed 5"):
        train(resume=result.run_dir, seed=5)
    with pytest.raises(UserError, match="already contains a run"):
        train("tiny", **SMALL, run_dir=result.run_dir)
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate(tmp_path / "run")
    with pytest.raises(UserError, match="--tasks is 0"):
        evaluate(result.run_dir, tasks=0)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_is_cheap():
    code = "import sys, paw_fast; print(sorted(m for m in sys.modules if m.startswith(('torch', 'transf', 'paw_'))))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['paw_fast']"


def test_public_names_stay_what_they_are():
    """A submodule with the name of a function would take its place once it is imported."""
    from pathlib import Path

    folder = Path(paw_fast.__file__).parent
    assert not [name for name in paw_fast.__all__ if (folder / name).is_dir() or (folder / f"{name}.py").exists()]
    assert set(paw_fast.__all__) <= set(dir(paw_fast))
    assert all(getattr(paw_fast, name) is not None for name in paw_fast.__all__)
    assert dataclasses.is_dataclass(paw_fast.TrainResult)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        paw_fast.trian  # noqa: B018
