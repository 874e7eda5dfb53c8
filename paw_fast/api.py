"""Trains and evaluates from Python: `from paw_fast import make_config, train, evaluate`.

Works in scripts, notebooks and threads. Mistakes raise `UserError`; nothing calls `sys.exit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paw_fast.cli.start import resume_run, start_run
from paw_fast.config import TrainConfig, with_absolute_paths, with_chat_date
from paw_fast.config.build import change_config, make_config
from paw_fast.config.ranges import check_ranges
from paw_fast.errors import UserError
from paw_fast.evaluation.success import EvalResult
from paw_fast.models.hub import check_model
from paw_fast.rollout.requirements import check_parts
from paw_fast.runs import console, stop_signals
from paw_fast.runs import run_dir as runs
from paw_fast.runs.checkpoint import find_checkpoint
from paw_fast.runs.live_curve import LiveCurve, in_notebook
from paw_fast.runs.metrics import read_metrics
from paw_fast.runs.resume import check_unedited
from paw_fast.trainer import OnStep


@dataclass(frozen=True)
class TrainResult:
    """What a training run left. Produced by `train`.

    run_dir     the run directory
    config      the settings of the run
    finished    False if the run was stopped before its last step; `train(resume=run_dir)` continues it
    summary     the content of summary.json: success before and after training with intervals, wall time, ...
    checkpoint  the newest checkpoint, a folder in Hugging Face format; None if the run stopped before the first one
    metrics     a row for each step, as in metrics.jsonl: {"step": 1, "reward/mean": 0.5, ...}; row 0 is the evaluation
                before training
    """

    run_dir: Path
    config: TrainConfig = field(repr=False)
    finished: bool
    summary: dict[str, Any] = field(repr=False)
    checkpoint: Path | None
    metrics: list[dict[str, float]] = field(repr=False)

    @property
    def success(self) -> float | None:
        """Share of evaluation tasks solved in the last evaluation; None before the first one."""
        return self.summary.get("final_success")


def train(
    config: TrainConfig | str | Path | None = None, *, resume: str | Path | None = None,
    on_step: OnStep | None = None, live: bool | None = None, **settings: Any,
) -> TrainResult:  # fmt: skip
    """Trains an agent, and returns what the run left.

    Args:
        config: a `TrainConfig` (see `make_config`), the name of a preset, or the path of a TOML file. The default is
            the preset `tiny`, which needs no GPU.
        resume: a run directory to continue from its newest checkpoint, in place of `config`.
        on_step: called as `on_step(step, metrics)` after the evaluation before training (step 0) and after each
            training step, with the values by metric name. If it returns True, the run is saved and stops. If it raises,
            the run is saved and the error is passed on.
        live: whether to show a figure of the success rate that is updated after each step. By default, only in a
            notebook. Needs IPython.
        settings: changes of the config, as for `make_config`: `steps=2, rollout={"groups": 4}`.

    In the main thread, Ctrl-C and a notebook's interrupt save the run and return a result with `finished` False; a
    second one raises `KeyboardInterrupt` at once. Other threads receive no signals: stop them through `on_step`. The
    global random generators of torch and numpy are seeded by the run.

    Raises `UserError` for settings that are not valid and for runs that cannot go on; a run that could not begin leaves
    no folder.

    >>> result = train("tiny", env="alfworld", steps=2)                                      # doctest: +SKIP
    >>> result.success, result.checkpoint                                                    # doctest: +SKIP
    (0.18, PosixPath('runs/alfworld-grpo-paw-s0-20261126-100000/checkpoints/step_000002'))
    """
    if resume is not None and config is not None:
        raise UserError("train() was given config and resume: a run is resumed with its own settings; leave config out")
    with stop_signals.handled(console.say), _without_bars():
        if resume is not None:
            return _resume(Path(resume), on_step, live, settings)
        if isinstance(config, TrainConfig):
            config = change_config(config, **settings)
        else:
            config = make_config("tiny" if config is None else config, **settings)
        return _begin(config, on_step, live)


def _begin(config: TrainConfig, on_step: OnStep | None, live: bool | None) -> TrainResult:
    config = with_chat_date(with_absolute_paths(config))
    check_parts(config)
    check_model(config.model.path)
    status, run_dir = start_run(config, lambda run_dir: _callbacks(run_dir, on_step, live))
    return _result(run_dir, config, status == 0)


def _resume(path: Path, on_step: OnStep | None, live: bool | None, settings: Mapping[str, Any]) -> TrainResult:
    run_dir = runs.find_run_dir(path)
    begun = runs.load_config(run_dir)
    check_unedited(run_dir, begun)
    given = any(f"env.{name}" in settings or name in _env_table(settings) for name in begun.env.CONSENT_FIELDS)
    names = [f"env={{{name!r}: {getattr(begun.env, name)!r}}}" for name in begun.env.CONSENT_FIELDS[:1]]
    runs.check_consent(begun.env, given, " ".join(names))
    config = change_config(begun, **settings)
    config = with_chat_date(with_absolute_paths(config))
    check_parts(config)
    status, _ = resume_run(run_dir, begun, config, lambda run_dir: _callbacks(run_dir, on_step, live))
    return _result(run_dir, config, status == 0)


def _env_table(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    table = settings.get("env")
    return table if isinstance(table, Mapping) else {}


def _callbacks(run_dir: Path, on_step: OnStep | None, live: bool | None) -> OnStep | None:
    """The caller's callback, after the live figure where one is shown."""
    if not (in_notebook() if live is None else live):
        return on_step
    curve = LiveCurve(run_dir)

    def both(step: int, metrics: Mapping[str, float]) -> object:
        curve(step, metrics)
        return on_step(step, metrics) if on_step is not None else None

    return both


def _result(run_dir: Path, config: TrainConfig, finished: bool) -> TrainResult:
    summary = runs.read_json(run_dir / "summary.json")
    return TrainResult(run_dir, config, finished, summary, find_checkpoint(run_dir), read_metrics(run_dir))


def evaluate(
    run: str | Path | TrainResult, *, split: str = "unseen", tasks: int = 100, seed: int = 0,
    temperature: float | None = None, env: str | None = None, preset: str | None = None, world_model: bool = False,
    panel: str | Path | None = None, trust_remote_code: bool = False, trust_env_code: bool = False,
) -> EvalResult:  # fmt: skip
    """Plays tasks of a split once each with a checkpoint, and returns how many it solves.

    Args:
        run: a run directory (its newest checkpoint), a checkpoint, a Hugging Face model folder, or a `TrainResult`.
        split: `train`, `unseen`, or another split of the environment.
        tasks: number of tasks, always the same ones of the split.
        seed: seed of the sampling. The same seed and checkpoint give the same result.
        temperature: sampling temperature; None is the evaluation temperature of the run.
        env, preset: environment and settings for a model folder that belongs to no run.
        world_model: whether to measure too how well next observations are predicted (`EvalResult.world_model`).
        panel: a panel's file, or the name of one of the package, in place of split and tasks.
        trust_remote_code: whether to run Python code that comes with the model.
        trust_env_code: whether to run code from the data files of the environment.

    Raises `UserError` if there is no checkpoint, if it is damaged, and for values out of range; `KeyboardInterrupt`
    after Ctrl-C in the main thread.

    >>> evaluate("runs/first", tasks=50).success                                             # doctest: +SKIP
    0.48
    """
    from paw_fast.cli.eval import evaluate_checkpoint
    from paw_fast.cli.eval_options import EvalOptions

    path = run.run_dir if isinstance(run, TrainResult) else Path(run)
    options = EvalOptions(
        (path,), env=env, split=split, tasks=tasks, seed=seed,
        temperature=temperature, preset=preset, world_model=world_model, trust_remote_code=trust_remote_code,
        panel=None if panel is None else str(panel), trust_env_code=trust_env_code,
    )  # fmt: skip
    check_ranges(options)
    try:
        with stop_signals.handled(console.say, "leaving the evaluation"), _without_bars():
            result, quality, _ = evaluate_checkpoint(path, options)
    except stop_signals.Interrupted:
        raise KeyboardInterrupt from None
    return dataclasses.replace(result, world_model=quality)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Disables the progress bars of transformers, which would break into ours."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
