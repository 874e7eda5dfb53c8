"""Trains: `Trainer.train_step` is one training step, top to bottom.

tasks ──> rollout: agent loop x engine x environments ──> trajectories, group by group      orchestrator, rollout/
  ^                                                            |
  |                            token statistics: old and reference log-probs, entropies     learner/
  |                                                            |
  |                 credit: advantages ── world model: selected transitions, weights        algorithms/
  |                                                            |
  └─── weights <── optimizer <── fused loss <── packed micro-batches <── loss rows          learner/, kernels/
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paw_fast.algorithms import off_policy, world_model
from paw_fast.algorithms.base import make_algorithm
from paw_fast.config import TrainConfig, with_chat_date
from paw_fast.config.services import log_services
from paw_fast.errors import UserError
from paw_fast.evaluation.success import (
    EvalResult,
    check_held_out,
    describe_tasks,
    eval_metrics,
    eval_tasks,
    evaluate,
    overlong_warning,
)
from paw_fast.evaluation.world_model import WorldModelQuality, measure_world_model
from paw_fast.learner import Learner, join_groups
from paw_fast.learner.seen_passages import SeenPassages
from paw_fast.learner.skipped_steps import MAX_IN_A_ROW, SkippedSteps
from paw_fast.models.smollm2 import resolve_model
from paw_fast.models.trained import load_reference, load_trained_policy
from paw_fast.orchestrator import make_orchestrator
from paw_fast.rollout.agent_loop import check_first_prompts
from paw_fast.rollout.engines.base import EngineError
from paw_fast.rollout.episode_metrics import episode_metrics
from paw_fast.rollout.factory import agent_settings, make_chat, make_env, max_length
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.rollout.requirements import check_parts
from paw_fast.rollout.rollout_progress import RolloutProgress, rollout_phase
from paw_fast.rollout.start_worker import start_worker
from paw_fast.rollout.task_sampler import TaskSampler
from paw_fast.rollout.worker import EvalSession
from paw_fast.runs import console, progress, stop_signals
from paw_fast.runs import run_dir as runs
from paw_fast.runs.checkpoint import Checkpoint, save_checkpoint
from paw_fast.runs.metrics import MetricsWriter, peak_memory_bytes
from paw_fast.runs.outcome import outcome_lines
from paw_fast.runs.resume import missing_rows, resume_point, write_summary
from paw_fast.runs.retention import prune, write_best
from paw_fast.runs.rng import capture_rng_states
from paw_fast.runs.stage_timer import StageTimer
from paw_fast.runs.trace import TraceFile, evaluation_spans, idle_shares
from paw_fast.runs.training_progress import RunShape, StepProgress, scoring_phase, show_update
from paw_fast.sft.warm_start import read_passages, warm_start
from paw_fast.types import EVALUATION, EpisodeId, RolloutBatch, TokenStats, Trajectory

OnStep = Callable[[int, Mapping[str, float]], object]
"""Called with the number of finished steps and the metrics of the last one; may return True to stop the run."""

DEMONSTRATION_STEPS = 60
"""Step limit of expert demonstrations: an expert with needless commands needs more steps than the policy may take."""


class Trainer:
    """One run: rollouts, updates, evaluations, checkpoints. `train` drives it."""

    def __init__(self, config: TrainConfig, run_dir: Path, resume: bool, on_step: OnStep | None = None):
        self.config = config = with_chat_date(config)
        self.on_step = on_step
        self.run_dir, self.timer = run_dir, StageTimer()
        self.start_time, self.earlier_s = time.monotonic(), 0.0
        self.step = 0
        self.summary: dict[str, Any] = {}
        self.progress = StepProgress(
            RunShape(config.steps, config.eval_every, config.eval_split, config.episodes_to_write > 0)
        )
        self.pending: dict[str, Any] | None = None
        """Metrics of an updated step whose evaluation and row in metrics.jsonl are still to come."""
        self.skipped_steps = SkippedSteps()
        self._saved: tuple[int, bool] | None = None
        """The step of the newest checkpoint, and whether its metrics were complete."""
        check_parts(config)
        torch.manual_seed(config.seed)
        np.random.seed(config.seed % 2**32)
        self.env = make_env(config.env)
        self.env.while_waiting(stop_signals.check)
        stop_signals.check()
        self.sampler = TaskSampler(self.env.tasks("train"), config.seed)
        self.eval_tasks = eval_tasks(self.env.tasks(config.eval_split), config.eval_tasks)
        self.eval_in_train = check_held_out(self.env, self.eval_tasks, config.eval_split)
        self.evaluated_on = describe_tasks(len(self.eval_tasks), config.eval_split, self.eval_in_train)
        checkpoint = resume_point(run_dir) if resume else None
        resumed = checkpoint.step if checkpoint else -1 if resume else None
        first_model = self._first_model()
        stop_signals.check()
        with progress.phase("loading the model"):
            self.policy = load_trained_policy(config, first_model, checkpoint.path if checkpoint else None)
        template = PromptTemplate.load(config.env.template, config.env.name)
        agent = agent_settings(self.policy.model.config, config)
        example = check_first_prompts(self.env, self.sampler.tasks, make_chat(self.policy, config), template, agent)
        runs.write_json(run_dir / runs.PROMPT, {"message": example, "stop": list(template.stop)})
        # The KL term's reference is the policy that training starts with.
        reference = load_reference(config, first_model, self.policy)
        stop_signals.check()
        passages = SeenPassages(run_dir / "passages.jsonl", resumed)
        max_tokens = max_length(self.policy.model.config, config)
        self.algorithm = make_algorithm(config)
        self.learner = Learner(self.policy, reference, config, max_tokens, passages)
        with self.timer("start"):
            version = checkpoint.step if checkpoint else 0
            self.worker = start_worker(config, self.policy, self.env, run_dir / "workers", version, self._stage)
        self.orchestrator = make_orchestrator(config, self.worker, self.sampler, console.say, self._stage)
        self.trace = TraceFile(run_dir / "trace.json") if config.profile else None
        if checkpoint:
            self._restore(checkpoint)
            if warning := missing_rows(run_dir, checkpoint):
                console.say(warning)
        else:
            passages.add(0, read_passages(run_dir / "warm_start"))
        self.writer = MetricsWriter(run_dir, log_services(config.log), resume_step=resumed)

    def _first_model(self) -> str | Path:
        """The model that training starts with: the warm-started tiny model, or the one of the config."""
        if self.config.model.path != "tiny":
            return resolve_model(self.config.model.path)
        folder = self.run_dir / "warm_start"
        if not (folder / "done").exists():
            env_config = dataclasses.replace(self.config.env, max_steps=DEMONSTRATION_STEPS)
            with self.timer("warm_start"), closing(make_env(env_config)) as env:
                warm_start(env, self.config, folder)
        return folder

    def _stage(self, name: str) -> AbstractContextManager[Any]:
        """Times a part of a step; before it the run can be interrupted."""
        stop_signals.check()
        return self.timer(name)

    # ------------------------------------------------------------------------------------------ one training step

    def train_step(self) -> dict[str, float]:
        """One training step; returns its metrics."""
        step, before = self.step, None if self.skipped_steps.in_a_row else self._state()
        groups: list[tuple[RolloutBatch, TokenStats]] = []
        with (
            rollout_phase(self.worker, step, self.config) as polled,
            closing(self.orchestrator.next_batch(step, polled)) as ended,
        ):
            for trajectories in ended:  # sync: after all have ended; stream, async: each group as it ends
                with self._stage("score"), scoring_phase(step, len(groups), self.config.rollout.groups):
                    group = self.learner.make_batch(trajectories)
                    groups.append((group, self.learner.compute_token_stats(group)))
        batch, stats = join_groups(groups)
        stats, metrics = off_policy.correct(batch, stats, self.config.pipeline, step, console.say)
        with stop_signals.deferred():  # until the step's metrics are kept
            with self.timer("update"):
                credit = self.algorithm.credit(batch, stats)
                weights = world_model.select(batch, stats, self.config, step)
                with progress.phase("update", name=f"update of step {step + 1}") as phase:
                    updated = self.learner.update(batch, stats, credit, weights, step, partial(show_update, phase))
            metrics = updated | episode_metrics(batch.trajectories) | self.orchestrator.take_metrics() | metrics
            self._keep(metrics, batch, stats, before)
        # Can be interrupted: a resumed run loads the current weights.
        with self.timer("sync"), progress.phase("syncing weights"):
            self.worker.update_weights(self.step)
        return metrics

    def _keep(
        self, metrics: dict[str, float], batch: RolloutBatch, stats: TokenStats, before: dict[str, Any] | None
    ) -> None:
        """Counts the update as done: from here on a checkpoint is one of after it. `before`: the state before it."""
        skipped, attempted = int(metrics["optim/skipped_steps"]), self.learner.optimizer_steps
        if warning := self.skipped_steps.add(self.step + 1, skipped, attempted, before):
            console.say(warning)
        if self.skipped_steps.too_many:
            self._stop_without_gradient(batch, stats)
        self.step += 1
        self.writer.check_in_place()
        runs.write_step(self.run_dir, self.step, batch.trajectories, self.config.episodes_to_write)
        self.pending = {name: float(value) for name, value in metrics.items()}

    def _stop_without_gradient(self, batch: RolloutBatch, stats: TokenStats) -> None:
        """Saves the state before the steps that changed nothing, and their last batch. Raises `UserError`."""
        path = runs.write_batch(self.run_dir, batch.trajectories, stats.old_logprobs)
        state, first = self.skipped_steps.good_state, self.step + 2 - MAX_IN_A_ROW
        kept = state["step"] if state else first - 1
        if state and not (self.run_dir / "checkpoints" / f"step_{kept:06d}").is_dir():
            self.save(state)
        raise UserError(
            f"no gradient was finite in the training steps {first} to {self.step + 1}: look at the last step's "
            f"episodes in {path}, lower --optim.learning-rate or the coefficients, and go on from step {kept} with "
            f"--resume {self.run_dir}"
        )

    # ------------------------------------------------------------------------------------- evaluation, metrics, state

    def evaluate(self, label: str) -> tuple[EvalResult, WorldModelQuality | None]:
        """Success on the evaluation tasks, at the evaluation temperature and with the run's fixed seeds; and how well
        the episodes' observations are predicted."""
        episodes: dict[EpisodeId, Trajectory] = {}
        start = time.monotonic()
        with self.timer("evaluate"):

            def done(t: Trajectory) -> None:
                episodes[t.episode_id] = t
                stop_signals.check()

            with progress.phase("evaluating", len(self.eval_tasks), "episodes", name=label) as phase:
                polled = RolloutProgress(phase, self.worker, EVALUATION, self.config.env.max_steps)
                temperature = self.config.rollout.eval_temperature
                session = EvalSession(self.worker, temperature, self.orchestrator.kept, polled)
                result = evaluate(session, self.eval_tasks, self.config.seed, done)
            if warning := overlong_warning(result):
                console.say(warning)
            quality = measure_world_model(
                self.policy, [episodes[one] for one in sorted(episodes)], token_budget=self.config.token_budget,
                chunk=self.learner.chunk, seed=self.config.seed, max_transitions=self.config.eval_transitions,
            )  # fmt: skip
        self.progress.evaluated(time.monotonic() - start)
        return result, quality

    def finish_step(self, metrics: dict[str, float], episodes: int) -> dict[str, float]:
        """Evaluates and saves when it is due, and logs. A run that is stopped in the evaluation repeats it."""
        c = self.config
        last, is_best = self.step == c.steps, False
        if (c.eval_every and self.step % c.eval_every == 0) or last:
            result, quality = self.evaluate("evaluating")
            is_best = self._note_best(result)
            metrics |= eval_metrics(result, quality)
            self.summary |= {
                "final_success": result.success, "final_eval": result.as_json(), "evaluated_step": self.step,
                "final_world_model": quality.as_json() if quality else None, "final_won": list(result.won),
            }  # fmt: skip
        times = self.timer.take()
        busy = max(1e-9, times["time/step_s"] - times.get("time/evaluate_s", 0.0))
        tokens = metrics.pop("tokens")
        spans, evaluations = self.worker.take_spans(), evaluation_spans(self.timer, times["time/step_s"])
        if self.trace is not None:
            self.trace.add(self.timer, spans)
        metrics |= times | idle_shares(times, spans, evaluations) | {
            "throughput/tokens_per_s": tokens / busy, "throughput/episodes_per_s": episodes / busy,
            "memory/peak_bytes": float(peak_memory_bytes()),
        }  # fmt: skip
        metrics |= self.worker.take_metrics()
        self.writer.log(self.step, metrics)
        self.pending = None
        # Not after steps that changed nothing: that would prune the checkpoint of before.
        if last or ((self.step % c.save_every == 0 or is_best) and not self.skipped_steps.in_a_row):
            self.save()
        return metrics

    def _note_best(self, result: EvalResult) -> bool:
        """Whether the checkpoint of this step is to be kept as the best one: its success exceeds all before it."""
        if not self.config.keep_best or result.success <= self.summary.get("best_success", -1.0):
            return False
        self.summary |= {"best_success": result.success, "best_step": self.step}
        return True

    def elapsed_s(self) -> float:
        """Wall time of the run in seconds, over all its resumptions."""
        return self.earlier_s + time.monotonic() - self.start_time

    def _state(self) -> dict[str, Any]:
        """The run's state after `self.step` steps, without the weights and what `Learner.stateful_parts` holds."""
        extra = {
            "sampler": self.orchestrator.sampler_state(), "summary": dict(self.summary), "elapsed_s": self.elapsed_s(),
            "policy_version": self.step, "pending": self.pending, "skipped_in_a_row": self.skipped_steps.in_a_row,
        }  # fmt: skip
        return {"step": self.step, "extra": extra, "rng_states": capture_rng_states()}

    def _restore(self, checkpoint: Checkpoint) -> None:
        checkpoint.restore(**self.learner.stateful_parts())
        self.learner.apply_settings()
        self.step = checkpoint.step
        self.sampler.restore(checkpoint.extra["sampler"])
        self.summary = dict(checkpoint.extra["summary"])
        self.earlier_s = float(checkpoint.extra["elapsed_s"])
        self.pending = checkpoint.extra.get("pending")
        self.skipped_steps.in_a_row = checkpoint.extra.get("skipped_in_a_row", 0)
        self._saved = (self.step, self.pending is None)

    def save(self, state: dict[str, Any] | None = None) -> Path:
        """Writes a checkpoint of the current weights with the current state, or with an earlier `state`.

        A state that the newest checkpoint already contains is not written again."""
        self.writer.check_in_place()
        self.writer.sync()
        now = (self.step, self.pending is None)
        if state is None and self._saved == now:
            return self.run_dir / "checkpoints" / f"step_{self.step:06d}"
        with progress.phase("saving", name="saving a checkpoint"):
            path = save_checkpoint(
                self.run_dir, model=self.policy.saved_model, tokenizer=self.policy.tokenizer,
                **self.learner.stateful_parts(), **(state or self._state()),
            )  # fmt: skip
        best = self.summary.get("best_step")
        if state is None:
            self._saved = now
            if best == self.step:
                write_best(self.run_dir, self.step, self.summary["best_success"], len(self.eval_tasks))
        prune(self.run_dir, self.config.keep_checkpoints, () if best is None else (best,))
        return path

    def run(self) -> None:
        """All remaining steps, then the summary and the report."""
        c = self.config
        self.summary |= {"eval_split": self.config.eval_split, "eval_tasks_in_train": self.eval_in_train}
        if "warm_start_success" not in self.summary:
            result, quality = self.evaluate("evaluating before training")
            self.summary |= {
                "warm_start_success": result.success, "final_success": result.success,
                "num_eval_tasks": result.num_tasks, "warm_start_eval": result.as_json(), "evaluated_step": 0,
                "num_parameters": self.policy.num_parameters(),
                "warm_start_world_model": quality.as_json() if quality else None, "warm_start_won": list(result.won),
            }  # fmt: skip
            metrics = eval_metrics(result, quality) | self.timer.take()
            self.writer.log(0, metrics)
            self._note_best(result)
            self.save()
            console.say(f"before training: success {result.success:.0%} on {self.evaluated_on}")
            self._call_on_step(metrics)
        episodes = c.rollout.groups * c.rollout.group_size
        with self.progress.running(self.step, self.summary["final_success"]):
            while self.pending is not None or self.step < c.steps:
                metrics = dict(self.pending) if self.pending is not None else self.train_step()
                metrics = self.finish_step(metrics, episodes)
                self.progress.step(self.step, metrics)
                self._call_on_step(metrics)
        self.write_summary()

    def _call_on_step(self, metrics: Mapping[str, float]) -> None:
        """Calls `on_step`. Raises `Interrupted` if it asks to stop; saves the run if it raises."""
        if self.on_step is None:
            return
        try:
            stop = self.on_step(self.step, dict(metrics)) is True
        except BaseException:
            self.save()
            raise
        if stop and self.step < self.config.steps:
            raise stop_signals.Interrupted

    def write_summary(self) -> None:
        """Writes summary.json and report.html as of now."""
        self.summary = write_summary(self.run_dir, self.summary, self.step, self.elapsed_s(), self.config.seed)

    def close(self) -> None:
        self.worker.close()
        self.writer.close()
        self.env.close()


def train(config: TrainConfig, run_dir: Path, resume: bool = False, on_step: OnStep | None = None) -> int:
    """Trains in `run_dir`, which it locks; returns 0, or the exit status if a signal or `on_step` stopped it."""
    with stop_signals.handled(console.say):
        runs.lock(run_dir)
        try:
            return _train(config, run_dir, resume, on_step)
        except EngineError as error:
            raise UserError(f"{error}; go on with --resume {run_dir}") from error
        finally:
            runs.unlock(run_dir)


def _train(config: TrainConfig, run_dir: Path, resume: bool, on_step: OnStep | None) -> int:
    again = f"paw-fast train --resume {shlex.quote(str(run_dir))}"
    try:
        trainer = Trainer(config, run_dir, resume, on_step)
    except stop_signals.Interrupted as stop:  # there is nothing to save yet
        console.say(f"stopped while setting up; start again with: {again}")
        return stop.status
    if resume:  # not before: settings with which the run cannot be set up are not written down
        runs.write_config(run_dir, config)
        runs.record_start(run_dir)
    try:
        trainer.run()
    except stop_signals.Interrupted as stop:
        trainer.save()
        trainer.write_summary()
        console.say(f"saved after step {trainer.step} of {config.steps}; go on with: {again}")
        return stop.status
    finally:
        trainer.close()
    for line in outcome_lines(run_dir, trainer.summary, trainer.evaluated_on):
        console.say(line)
    return 0
