"""Runs `paw-fast eval`: tasks of a split with a checkpoint, and how many it solves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paw_fast.cli.eval_options import EvalOptions
from paw_fast.cli.options import parse
from paw_fast.config import TrainConfig, load_preset, validate, with_chat_date
from paw_fast.envs.base import Env
from paw_fast.errors import UserError
from paw_fast.evaluation.held_out_text import read_text, text_loss
from paw_fast.evaluation.panel import Panel, changed_settings, find_tasks, read_panel, with_panel
from paw_fast.evaluation.success import EvalResult, describe_tasks, eval_tasks, evaluate
from paw_fast.evaluation.task_overlap import tasks_in_train
from paw_fast.evaluation.world_model import WorldModelQuality, measure_world_model
from paw_fast.learner.forward_backward import rows_per_chunk
from paw_fast.models.policy import load_policy, resolve_device
from paw_fast.models.smollm2 import resolve_model
from paw_fast.rollout.factory import make_env, make_evaluation_engine, make_loop
from paw_fast.rollout.rollout_progress import RolloutProgress
from paw_fast.rollout.worker import EvalSession, LocalRolloutWorker
from paw_fast.runs import console, progress, run_dir, stop_signals
from paw_fast.runs.checkpoint import find_checkpoint, verify_checkpoint
from paw_fast.runs.retention import best_checkpoint
from paw_fast.runs.statistics import wilson_interval
from paw_fast.types import EVALUATION, EpisodeId, Task, Trajectory


def find_model(path: Path, preset: str | None, env: str | None = None) -> tuple[Path | str, TrainConfig]:
    """The model folder that `path` means, and the settings it was trained with.

    `path` is a run directory, one of its checkpoints (or its warm_start folder), or any model folder; the last
    takes the settings of `preset`, by default those of `tiny` for a folder and `verl`'s prompts otherwise.
    """
    if not path.exists():
        resolved = resolve_model(str(path))
        if resolved == str(path):
            raise UserError(f"no checkpoint at {path}: give a run directory, a checkpoint or a model folder")
        return resolved, load_preset(preset or "smollm2", env)
    checkpoint = find_checkpoint(path)
    if checkpoint is not None:
        verify_checkpoint(checkpoint)
        path = checkpoint
    elif (path / "config.toml").is_file():
        raise UserError(f"no checkpoint in {path} yet: let the run save one, or evaluate {path}/warm_start")
    try:
        run = run_dir.find_run_dir(path)
    except UserError:
        if checkpoint is not None and preset is None:
            raise
        return path, load_preset(preset or "tiny", env)
    config = run_dir.load_config(run)
    return path, load_preset(preset, env or config.env.name) if preset else config


def _tasks_in_train(env: Env, tasks: Sequence[Task], split: str, path: Path | str, preset: str | None) -> int | None:
    """How many of the tasks the model's run trains on; None where that is not known, because it belongs to no run, is
    asked with other settings than its run's, or the run's training tasks cannot be read."""
    if preset is not None or isinstance(path, str):
        return None
    try:
        run_dir.find_run_dir(path)
    except UserError:
        return None
    try:
        return tasks_in_train(env, tasks, split)
    except UserError as error:
        console.say(f"note: it is not known whether the run trained on these tasks: {error}")
        return None


def _stage(name: str) -> contextlib.AbstractContextManager:
    stop_signals.check()
    return contextlib.nullcontext()


Evaluated = tuple[EvalResult, WorldModelQuality | None, dict[str, Any]]


def run_eval(options: EvalOptions, env_settings: Sequence[str] = ()) -> int:
    """Runs the command; returns the exit status. `env_settings`: options such as `--env.max-steps 5`."""
    for path in options.checkpoints:
        reject_parent_of_runs(path)
    done: list[Evaluated] = []
    for path in options.checkpoints:
        done.append(evaluate_checkpoint(path, options, env_settings))
    if options.json:
        found = [
            a | r.as_json() | ({"world_model": q.as_json()} if q else {}) | {"tasks": list(r.outcomes)}
            for r, q, a in done
        ]
        print(json.dumps(found[0] if len(found) == 1 else found))
    elif len(done) == 1:
        result, quality, about = done[0]
        _show(result, about)
        if quality:
            _show_world_model(quality)
    else:
        _show_several(done)
    return 0


def reject_parent_of_runs(path: Path) -> None:
    """Raises `UserError`, which lists the runs, if `path` is no run itself but a folder of runs."""
    if not path.is_dir() or (path / "config.toml").exists() or (path / "config.json").exists():
        return
    found = sorted(one.parent.name for one in path.glob("*/config.toml"))
    if found:
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise UserError(
            f"{path} is a folder of {len(found)} runs: name one or more of {', '.join(found[:8])}{more}, such as "
            f"{path / found[0]}"
        )


def _settings(
    path: Path, options: EvalOptions, env_settings: Sequence[str], panel: Panel | None = None
) -> tuple[Path | str, TrainConfig]:
    """The model folder, and the settings of its run with those of the panel and the command line."""
    given = best_checkpoint(run_dir.find_run_dir(path)) if options.best else path
    folder, config = find_model(given, options.preset, options.env)
    config = with_chat_date(with_consent(config, options))
    if options.env not in (None, config.env.name):
        raise UserError(f"{path} was trained on {config.env.name}, not on --env {options.env}")
    before = config
    if env_settings:
        config = parse(TrainConfig, env_settings, "eval", config)
    if panel is not None:
        if changed := changed_settings(before.env, config.env, panel):
            raise UserError(f"--env.{changed[0].replace('_', '-')}: it belongs to the panel {panel.name}; leave it out")
        config = dataclasses.replace(config, env=with_panel(config.env, panel))
    if options.device is not None:
        resolve_device(options.device)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, device=options.device))
    if options.slots is not None:
        config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, slots=options.slots))
    if config != before:
        validate(config)
    return folder, config


def _say_settings(path: Path | str, config: TrainConfig, options: EvalOptions, changed: Sequence[str]) -> None:
    """Says in one line what is evaluated and with which settings."""
    temperature = config.rollout.eval_temperature if options.temperature is None else options.temperature
    parts = [
        *([f"panel {options.panel}"] if options.panel else []),
        f"split {options.split}", f"{options.tasks} tasks at most", f"seed {options.seed}",
        f"temperature {temperature:g}", f"device {resolve_device(config.model.device)}", *changed,
    ]  # fmt: skip
    console.say(f"evaluating {path} on {config.env.name}: {', '.join(parts)}")


def _read_panel(options: EvalOptions) -> Panel | None:
    """The panel of the options. Raises `UserError` if they give tasks of their own too."""
    if options.panel is None:
        return None
    for name in ("split", "tasks"):
        if getattr(options, name) != EvalOptions.__dataclass_fields__[name].default:
            raise UserError(f"--panel and --{name}: a panel has its own tasks; leave --{name} out")
    return read_panel(options.panel)


def _text(options: EvalOptions, config: TrainConfig) -> str | None:
    """The text of no environment; None, which is said, where the run's own is not here. Raises `UserError` for another
    that cannot be read."""
    try:
        return read_text(options.eval_text or config.eval_text)
    except UserError as error:
        if options.eval_text is not None:
            raise
        console.say(f"note: the loss on text of no environment is not measured: {error}")
        return None


def evaluate_checkpoint(path: Path, options: EvalOptions, env_settings: Sequence[str] = ()) -> Evaluated:
    """Evaluates a checkpoint: success, the world model if asked for, and what was evaluated how."""
    panel = _read_panel(options)
    if panel is not None:
        options = dataclasses.replace(options, env=options.env or panel.env, split=panel.split, tasks=len(panel.tasks))
    folder, config = _settings(path, options, env_settings, panel)
    _say_settings(folder, config, options, env_settings)
    temperature = config.rollout.eval_temperature if options.temperature is None else options.temperature
    text = _text(options, config)
    env = make_env(config.env)
    env.while_waiting(stop_signals.check)
    try:
        if panel is not None:
            tasks = find_tasks(panel, config.env, env)
        else:
            tasks = eval_tasks(env.tasks(options.split), options.tasks)
        in_train = _tasks_in_train(env, tasks, options.split, folder, options.preset)
        policy = load_policy(folder, config.model, trainable=False)
        config = dataclasses.replace(
            config, rollout=dataclasses.replace(config.rollout, slots=min(config.rollout.slots, len(tasks)))
        )
        stop_signals.check()
        loop = make_loop(
            policy.tokenizer, policy.model.config, make_evaluation_engine(policy, config), env, config, _stage
        )
        worker = LocalRolloutWorker(loop, config.rollout.sync_timeout_s)
        episodes: dict[EpisodeId, Trajectory] = {}
        with progress.phase("evaluating", len(tasks), "episodes") as phase:

            def done(t: Trajectory) -> None:
                episodes[t.episode_id] = t
                stop_signals.check()

            polled = RolloutProgress(phase, worker, EVALUATION, config.env.max_steps)
            session = EvalSession(worker, temperature, [], polled)
            result = evaluate(session, tasks, options.seed, done)
        chunk = rows_per_chunk(policy, config.logits_bytes)
        if text is not None:
            result = dataclasses.replace(result, text_loss=text_loss(policy, config, chunk, text))
        quality = None
        if options.world_model:
            quality = measure_world_model(
                policy, [episodes[one] for one in sorted(episodes)], token_budget=config.batch_tokens,
                chunk=chunk, seed=options.seed,
                max_transitions=options.transitions,
            )  # fmt: skip
    finally:
        env.close()
    about = {
        "checkpoint": str(folder),
        "env": config.env.name,
        "split": options.split,
        "eval_tasks_in_train": in_train,
        "seed": options.seed,
        "temperature": temperature,
    }
    if panel is not None:
        about["panel"] = {"name": panel.name, "hash": panel.hash}
    return result, quality, about


def with_consent(config: TrainConfig, options: Any) -> TrainConfig:
    """The settings with what the command line says about code that comes with models and games."""
    run_dir.check_consent(config.env, options.trust_env_code, "--trust-env-code")
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, trust_remote_code=options.trust_remote_code),
        env=config.env.with_consent(options.trust_env_code),
    )  # fmt: skip


def _show(result: EvalResult, about: dict) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = result.as_json()
    title = f"{about['checkpoint']} on {about['env']}, split {about['split']}, seed {about['seed']}"
    table = Table(title=Text(title))  # not a string: a name may contain what rich takes for markup
    for name in ("task type", "success", "95 % interval", "solved"):
        table.add_column(name, justify="left" if name == "task type" else "right")
    for name, row in [*shown["by_task_type"].items(), ("all", shown)]:
        interval = f"{row['low']:.0%} to {row['high']:.0%}"
        table.add_row(name, f"{row['success']:.1%}", interval, f"{row['successes']} of {row['num_tasks']}")
    captions = []
    if about["eval_tasks_in_train"] and about["split"] != "train":
        captions.append(describe_tasks(result.num_tasks, about["split"], about["eval_tasks_in_train"]))
    if shown["mean_scores"]:
        captions.append(", ".join(f"{name} {value:.3f}" for name, value in shown["mean_scores"].items()))
    captions.append(f"{result.continued:.1%} of the actions continue the transcript")
    if result.text_loss is not None:
        captions.append(f"loss on text of no environment {result.text_loss:.2f} nats per token")
    table.caption = Text("; ".join(captions)) if captions else None
    Console().print(table)


def _show_several(done: Sequence[Evaluated]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    about = done[0][2]
    table = Table(title=Text(f"split {about['split']}, seed {about['seed']}, 95 % intervals"))
    for name in ("checkpoint", "environment", "success", "interval", "solved", "mean actions"):
        table.add_column(name, justify="left" if name in ("checkpoint", "environment") else "right", overflow="fold")
    for result, _, about in done:
        low, high = wilson_interval(result.successes, result.num_tasks)
        table.add_row(
            Text(about["checkpoint"]), Text(about["env"]), f"{result.success:.1%}", f"{low:.0%} to {high:.0%}",
            f"{result.successes} of {result.num_tasks}", f"{result.mean_length:.1f}",
        )  # fmt: skip
    Console().print(table)


def _show_world_model(quality: WorldModelQuality) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"next observation, {quality.num_tokens} tokens of {quality.num_transitions} transitions")
    for name in ("after", "likeliest token is right", "mean probability"):
        table.add_column(name, justify="left" if name == "after" else "right")
    table.add_row("the played action", f"{quality.accuracy:.1%}", f"{quality.probability:.3f}")
    table.add_row("another action", f"{quality.shuffled_accuracy:.1%}", f"{quality.shuffled_probability:.3f}")
    table.add_row("gap", f"{quality.accuracy - quality.shuffled_accuracy:.1%}", f"{quality.action_gap:.3f}")
    Console().print(table)
