"""Runs `paw-fast eval`: tasks of a split with a checkpoint, and how many it solves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from paw_fast.config import TrainConfig, load_preset, with_chat_date
from paw_fast.envs.base import Env
from paw_fast.errors import UserError
from paw_fast.evaluation.success import EvalResult, describe_tasks, eval_tasks, evaluate, overlong_warning
from paw_fast.evaluation.task_overlap import tasks_in_train
from paw_fast.evaluation.world_model import WorldModelQuality, measure_world_model
from paw_fast.learner.forward_backward import rows_per_chunk
from paw_fast.models.policy import load_policy
from paw_fast.models.smollm2 import resolve_model
from paw_fast.rollout.factory import make_engine, make_env, make_loop
from paw_fast.rollout.rollout_progress import RolloutProgress
from paw_fast.rollout.worker import EvalSession, LocalRolloutWorker
from paw_fast.runs import console, progress, run_dir, stop_signals
from paw_fast.runs.checkpoint import find_checkpoint, verify_checkpoint
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


def run_eval(options) -> int:
    """Runs the command with `cli.EvalOptions`; returns the exit status."""
    result, quality, about = evaluate_checkpoint(options)
    if options.json:
        print(json.dumps(about | result.as_json() | ({"world_model": quality.as_json()} if quality else {})))
    else:
        if warning := overlong_warning(result):
            console.say(warning)
        _show(result, about)
        if quality:
            _show_world_model(quality)
    return 0


def evaluate_checkpoint(options) -> tuple[EvalResult, WorldModelQuality | None, dict]:
    """Evaluates with `cli.EvalOptions`: success, the world model if asked for, and what was evaluated how."""
    path, config = find_model(options.checkpoint, options.preset, options.env)
    config = with_chat_date(with_consent(config, options))
    if options.env not in (None, config.env.name):
        raise UserError(f"{options.checkpoint} was trained on {config.env.name}, not on --env {options.env}")
    temperature = config.rollout.eval_temperature if options.temperature is None else options.temperature
    env = make_env(config.env)
    env.while_waiting(stop_signals.check)
    try:
        tasks = eval_tasks(env.tasks(options.split), options.tasks)
        in_train = _tasks_in_train(env, tasks, options.split, path, options.preset)
        policy = load_policy(path, config.model, trainable=False)
        config = dataclasses.replace(
            config, rollout=dataclasses.replace(config.rollout, slots=min(config.rollout.slots, len(tasks)))
        )
        stop_signals.check()
        loop = make_loop(policy.tokenizer, policy.model.config, make_engine(policy, config), env, config, _stage)
        worker = LocalRolloutWorker(loop, config.rollout.sync_timeout_s)
        episodes: dict[EpisodeId, Trajectory] = {}
        with progress.phase("evaluating", len(tasks), "episodes") as phase:

            def done(t: Trajectory) -> None:
                episodes[t.episode_id] = t
                stop_signals.check()

            polled = RolloutProgress(phase, worker, EVALUATION, config.env.max_steps)
            session = EvalSession(worker, temperature, [], polled)
            result = evaluate(session, tasks, options.seed, done)
        quality = None
        if options.world_model:
            quality = measure_world_model(
                policy, [episodes[one] for one in sorted(episodes)], token_budget=config.token_budget,
                chunk=rows_per_chunk(policy, config.logits_budget_mb << 20), seed=options.seed,
                max_transitions=options.transitions,
            )  # fmt: skip
    finally:
        env.close()
    about = {
        "checkpoint": str(path),
        "env": config.env.name,
        "split": options.split,
        "eval_tasks_in_train": in_train,
        "seed": options.seed,
        "temperature": temperature,
    }
    return result, quality, about


def with_consent(config: TrainConfig, options) -> TrainConfig:
    """The settings with what the command line says about code that comes with models and games."""
    run_dir.check_consent(config.env, options.trust_env_code, "--trust-env-code")
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, trust_remote_code=options.trust_remote_code),
        env=config.env.with_consent(options.trust_env_code),
    )  # fmt: skip


def _show(result: EvalResult, about: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = result.as_json()
    table = Table(title=f"{about['checkpoint']} on {about['env']}, split {about['split']}, seed {about['seed']}")
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
    table.caption = "; ".join(captions) or None
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
