"""The training loop.

tasks ──> rollout: agent loop x engine x environments ──> trajectories
  ^                                                           |
  |                       score: old and reference log-probs, action entropies
  |                                                           |
  |               advantages ── selected transitions ── lambda of each group
  |                                                           |
  └── weights ── optimizer <── fused loss <── packed micro-batches
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paw_fast.config import TrainConfig, with_chat_date
from paw_fast.errors import UserError
from paw_fast.evaluation.success import (
    EvalResult,
    check_held_out,
    describe_tasks,
    eval_tasks,
    evaluate,
    overlong_warning,
)
from paw_fast.evaluation.world_model import WorldModelQuality, measure_world_model
from paw_fast.learner import Learner
from paw_fast.learner.seen_passages import SeenPassages
from paw_fast.models.policy import load_policy, resolve_device
from paw_fast.models.smollm2 import resolve_model
from paw_fast.orchestrator import Batch, Orchestrator
from paw_fast.rollout.agent_loop import check_first_prompts
from paw_fast.rollout.engines.base import EngineError
from paw_fast.rollout.factory import agent_settings, make_chat, make_engine, make_env, make_loop
from paw_fast.rollout.prompts import PromptTemplate
from paw_fast.rollout.task_sampler import TaskSampler
from paw_fast.rollout.timeouts import time_limit
from paw_fast.rollout.worker import EvalSession, LocalRolloutWorker, RolloutWorker
from paw_fast.rollout.worker_pool import RolloutWorkerPool
from paw_fast.runs import console, stop_signals
from paw_fast.runs import run_dir as runs
from paw_fast.runs.checkpoint import prune, save_checkpoint
from paw_fast.runs.metrics import MetricsWriter, peak_memory_bytes
from paw_fast.runs.resume import resume_point, write_summary
from paw_fast.runs.rng import capture_rng_states
from paw_fast.runs.stage_timer import StageTimer
from paw_fast.runs.trace import TraceFile, idle_shares
from paw_fast.sft.warm_start import read_passages, warm_start
from paw_fast.types import Trajectory

DEMONSTRATION_STEPS = 60
MOST_SKIPPED_STEPS = 3
"""Training steps in a row whose optimizer steps may all be left out; the run stops at the last of them."""


def check_parts(config: TrainConfig) -> None:
    """Looks for what a run needs only later, so that it does not stop after minutes. Raises `UserError`."""
    PromptTemplate.load(config.env.template, config.env.name)
    resolve_device(config.model.device)
    if config.rollout.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        from paw_fast.rollout.engines.vllm import INSTALL_HINT

        raise UserError(f"--rollout.engine vllm needs vLLM: {INSTALL_HINT}")
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb needs wandb, which is not installed: pip install 'paw-fast[wandb]'")


class Trainer:
    """One run: rollouts, updates, evaluations, checkpoints. `train` drives it."""

    def __init__(self, config: TrainConfig, run_dir: Path, resume: bool):
        config = with_chat_date(config)
        self.config, self.run_dir = config, run_dir
        self.start_time = time.monotonic()
        self.earlier_s = 0.0
        self.step = 0
        self.summary: dict[str, Any] = {}
        self.pending: dict[str, Any] | None = None  # metrics of a step whose evaluation and row are still to come
        self.skipped_in_a_row = 0
        self.good_state: dict[str, Any] | None = None  # from before those steps
        self.timer = StageTimer()
        check_parts(config)
        torch.manual_seed(config.seed)
        np.random.seed(config.seed % 2**32)
        self.env = make_env(config.env)
        self.env.while_waiting(self._check_interrupt)
        stop_signals.check()
        self.sampler = TaskSampler(self.env.tasks("train"), config.seed)
        self.eval_tasks = eval_tasks(self.env.tasks(config.eval_split), config.eval_tasks)
        self.eval_in_train = check_held_out(self.env, self.eval_tasks, config.eval_split)
        checkpoint = resume_point(run_dir) if resume else None
        first_model = self._first_model()
        stop_signals.check()
        self.policy = load_policy(checkpoint.path if checkpoint else first_model, config.model)
        check_first_prompts(
            self.env, self.sampler.tasks, make_chat(self.policy, config),
            PromptTemplate.load(config.env.template, config.env.name),
            agent_settings(self.policy.model.config, config),
        )  # fmt: skip
        # The reference of the KL term is the policy that training began with.
        self.reference = load_policy(first_model, config.model, trainable=False) if config.algo.kl_coef > 0 else None
        stop_signals.check()
        self.learner = Learner(self.policy, self.reference, config)
        self.player = self._make_player(checkpoint.step if checkpoint else 0)
        self.pipeline = Orchestrator(config, self.player, self.sampler, self.learner, self._stage, console.say)
        self.timeline = TraceFile(run_dir / "trace.json") if config.profile else None
        if checkpoint:
            checkpoint.restore(
                optimizer=self.learner.optimizer, scheduler=self.learner.scheduler, critic=self.learner.critic
            )
            self.learner.apply_settings()
            self.step = checkpoint.step
            self.sampler.restore(checkpoint.extra["sampler"])
            self.summary = dict(checkpoint.extra["summary"])
            self.earlier_s = float(checkpoint.extra["elapsed_s"])
            self.pending = checkpoint.extra.get("pending")
            self.skipped_in_a_row = checkpoint.extra.get("skipped_in_a_row", 0)
        resumed = self.step if checkpoint else -1 if resume else None
        self.learner.passages = SeenPassages(run_dir / "passages.jsonl", resumed)
        if not checkpoint:
            self.learner.passages.add(0, read_passages(run_dir / "warm_start"))
        settings = {"project": "paw-fast", "name": run_dir.name} if config.wandb else None
        self.writer = MetricsWriter(run_dir, wandb=settings, resume_step=resumed)

    def _make_player(self, version: int) -> RolloutWorker:
        """What plays the episodes: actors in processes of their own, or the loop of this process."""
        if self.config.rollout.placement == "process":
            with self.timer("start"):
                pool = RolloutWorkerPool(self.config, self.policy, self.run_dir / "generators", version)
            pool.stage = self._stage
            return pool
        limit = self.config.rollout.start_timeout_s
        with time_limit(limit, "the generator of this process to start", "--rollout.start-timeout-s"):
            engine = make_engine(self.policy, self.config)
        loop = make_loop(self.policy.tokenizer, self.policy.model.config, engine, self.env, self.config)
        loop.stage = self._stage
        player = LocalRolloutWorker(loop, self.config.rollout.sync_timeout_s)
        if version:
            player.update_weights(version)
        return player

    def _first_model(self) -> str | Path:
        """What training begins with: the warm-started tiny model, or the one that was named."""
        if self.config.model.path != "tiny":
            return resolve_model(self.config.model.path)
        folder = self.run_dir / "warm_start"
        if not (folder / "done").exists():
            with self.timer("warm_start"):
                # A hesitant searcher needs more steps than the policy is given.
                patient = make_env(dataclasses.replace(self.config.env, max_steps=DEMONSTRATION_STEPS))
                with contextlib.closing(patient):
                    warm_start(patient, self.config, folder)
        return folder

    def _stage(self, name: str):
        self._check_interrupt()
        return self.timer(name)

    def _check_interrupt(self) -> None:
        if not self._updating:
            stop_signals.check()

    _updating = False  # from the update until its metrics are kept in `pending`, a stop waits

    def elapsed_s(self) -> float:
        """Wall time of the run in seconds, over all its resumptions."""
        return self.earlier_s + time.monotonic() - self.start_time

    def _state(self) -> dict[str, Any]:
        """All of the run's state after `self.step` steps but the weights and the optimizers'."""
        extra = {
            "sampler": self.pipeline.sampler_state(), "summary": dict(self.summary), "elapsed_s": self.elapsed_s(),
            "policy_version": self.step, "pending": self.pending, "skipped_in_a_row": self.skipped_in_a_row,
        }  # fmt: skip
        return {"step": self.step, "extra": extra, "rng_states": capture_rng_states()}

    def save(self, state: dict[str, Any] | None = None) -> Path:
        """Writes a checkpoint of the state after `self.step` steps, or of one of before with the weights of now."""
        self.writer.check_in_place()
        path = save_checkpoint(
            self.run_dir, model=self.policy.model, tokenizer=self.policy.tokenizer, optimizer=self.learner.optimizer,
            scheduler=self.learner.scheduler, critic=self.learner.critic, **(state or self._state()),
        )  # fmt: skip
        prune(self.run_dir, self.config.keep_checkpoints)
        return path

    def evaluate(self, label: str) -> tuple[EvalResult, WorldModelQuality | None]:
        """Success on the evaluation tasks, at the evaluation temperature, with the run's fixed seeds; and how well
        the episodes' observations are predicted."""
        episodes: dict[tuple[int, ...], Trajectory] = {}
        with self.timer("evaluate"), console.progress(label, len(self.eval_tasks)) as advance:

            def done(t: Trajectory) -> None:
                episodes[t.seed] = t
                advance()

            sitting = EvalSession(self.player, self.config.rollout.eval_temperature, self.pipeline.kept)
            result = evaluate(sitting, self.eval_tasks, self.config.seed, done)
            if warning := overlong_warning(result):
                console.say(warning)
            quality = measure_world_model(
                self.policy, [episodes[seed] for seed in sorted(episodes)], token_budget=self.config.token_budget,
                chunk=self.learner.chunk, seed=self.config.seed, max_transitions=self.config.eval_transitions,
                check=self._check_interrupt,
            )  # fmt: skip
        return result, quality

    def train_step(self, advance: Callable[[], None]) -> dict[str, float]:
        """One step: rollout, score, update. Returns its metrics."""
        before = None if self.skipped_in_a_row else self._state()
        batch = self.pipeline.batch(self.step, advance)
        self._updating = True
        with self.timer("update"):
            metrics = self.learner.update(batch.trajectories, batch.sequences, batch.scores, self.step)
        self._watch_skipped(int(metrics["optim/skipped_steps"]), batch, before)
        self.step += 1
        self.writer.check_in_place()
        runs.write_episodes(self.run_dir, self.step, batch.trajectories[: self.config.episodes_to_write])
        found = metrics | episode_metrics(batch.trajectories) | batch.metrics
        self.pending = {name: float(value) for name, value in found.items()}
        self._updating = False
        with self.timer("sync"):  # may be left: a resumed run loads the weights as they are now
            self.player.update_weights(self.step)
        return dict(self.pending)

    def _watch_skipped(self, skipped: int, batch: Batch, before: dict[str, Any] | None) -> None:
        """Warns of optimizer steps that were left out. Raises `UserError` after too many training steps without any;
        `before` is the state before this one."""
        tried, number = self.learner.optimizer_steps, self.step + 1
        if skipped:
            console.say(
                f"warning: step {number}: {skipped} of {tried} optimizer steps were left out, their gradients were not "
                "finite"
            )
        if not skipped or skipped < tried:
            self.skipped_in_a_row, self.good_state = 0, None
            return
        self.skipped_in_a_row += 1
        self.good_state = self.good_state or before
        if self.skipped_in_a_row < MOST_SKIPPED_STEPS:
            return
        path = runs.write_batch(self.run_dir, batch.trajectories, batch.scores.old_logprobs)
        kept = self.good_state["step"] if self.good_state else number - MOST_SKIPPED_STEPS
        if self.good_state and not (self.run_dir / "checkpoints" / f"step_{kept:06d}").is_dir():
            self.save(self.good_state)
        raise UserError(
            f"no gradient was finite in the training steps {number - MOST_SKIPPED_STEPS + 1} to {number}: look at the "
            f"last step's episodes in {path}, lower --optim.learning-rate or the coefficients, and go on from step "
            f"{kept} with --resume {self.run_dir}"
        )

    def finish_step(self, metrics: dict[str, float], episodes: int) -> dict[str, float]:
        """Evaluates and saves where it is time to, and logs. May be left in the evaluation and called again."""
        c = self.config
        last = self.step == c.steps
        if (c.eval_every and self.step % c.eval_every == 0) or last:
            result, quality = self.evaluate("evaluating")
            metrics |= eval_metrics(result, quality)
            self.summary |= {
                "final_success": result.success, "final_eval": result.as_json(), "evaluated_step": self.step,
                "final_world_model": quality.as_json() if quality else None,
            }  # fmt: skip
        times = self.timer.take()
        busy = max(1e-9, times["time/step_s"] - times.get("time/evaluate_s", 0.0))
        tokens = metrics.pop("tokens")
        metrics |= times | self._idle(times) | {
            "throughput/tokens_per_s": tokens / busy, "throughput/episodes_per_s": episodes / busy,
            "memory/peak_bytes": float(peak_memory_bytes()),
        }  # fmt: skip
        metrics |= self.player.take_metrics()
        self.writer.log(self.step, metrics)
        self.pending = None
        # Not after steps that changed nothing: that would prune the state of before.
        if (self.step % c.save_every == 0 and not self.skipped_in_a_row) or last:
            self.save()
        return metrics

    def _idle(self, times: Mapping[str, float]) -> dict[str, float]:
        """Idle shares of the step that just ended; writes its part of the timeline."""
        spans, clock = self.player.take_spans(), self.timer.origin
        begun = time.perf_counter() - clock - times["time/step_s"]
        evaluated = [
            (s.name, clock + s.start_s, clock + s.end_s)
            for s in self.timer.spans
            if s.name == "evaluate" and s.end_s > begun
        ]
        if self.timeline is not None:
            self.timeline.add(self.timer, spans)
        return idle_shares(times, spans, evaluated)

    def run(self) -> None:
        """All remaining steps, then the summary and the report."""
        c = self.config
        self.summary |= {"eval_split": self.config.eval_split, "eval_tasks_in_train": self.eval_in_train}
        if "warm_start_success" not in self.summary:
            result, quality = self.evaluate("evaluating the policy that training begins with")
            self.summary |= {
                "warm_start_success": result.success, "final_success": result.success,
                "num_eval_tasks": result.num_tasks, "warm_start_eval": result.as_json(), "evaluated_step": 0,
                "num_parameters": self.policy.num_parameters(),
                "warm_start_world_model": quality.as_json() if quality else None,
            }  # fmt: skip
            self.writer.log(0, eval_metrics(result, quality) | self.timer.take())
            self.save()
            console.say(f"before training: success {result.success:.0%} on {self.evaluated_on()}")
        episodes = c.rollout.groups * c.rollout.group_size
        with console.step_progress(c.steps, self.step, self.summary["final_success"], c.eval_split) as show:
            if self.pending is not None:
                show.step(self.step, self.finish_step(dict(self.pending), episodes))
            while self.step < c.steps:
                metrics = self.finish_step(self.train_step(show.episode(episodes)), episodes)
                show.step(self.step, metrics)
        self.write_summary()

    def evaluated_on(self) -> str:
        """The evaluation tasks in words."""
        return describe_tasks(len(self.eval_tasks), self.config.eval_split, self.eval_in_train)

    def write_summary(self) -> None:
        """summary.json and report.html, of what the run has reached."""
        self.summary = write_summary(self.run_dir, self.summary, self.step, self.elapsed_s(), self.config.seed)

    def close(self) -> None:
        self.player.close()
        self.writer.close()
        self.env.close()


def train(config: TrainConfig, run_dir: Path, resume: bool = False) -> int:
    """Trains in `run_dir`, which it holds; returns the exit status: 0, or that of `stopping.Interrupted` when a signal
    stopped it after saving."""
    with stop_signals.handled(console.say):
        runs.lock(run_dir)
        try:
            return _train(config, run_dir, resume)
        except EngineError as error:
            raise UserError(f"{error}; go on with --resume {run_dir}") from error
        finally:
            runs.unlock(run_dir)


def _train(config: TrainConfig, run_dir: Path, resume: bool) -> int:
    again = f"paw-fast train --resume {run_dir}"
    try:
        trainer = Trainer(config, run_dir, resume)
    except stop_signals.Interrupted as stop:  # there is nothing to save yet
        console.say(f"stopped while setting up; begin again with: {again}")
        return stop.status
    if resume:  # not before: what could not be set up is not to be gone on with
        runs.write_config(run_dir, config)
    try:
        trainer.run()
    except stop_signals.Interrupted as stop:
        trainer.save()
        trainer.write_summary()
        console.say(f"saved after step {trainer.step} of {config.steps}; go on with: {again}")
        return stop.status
    finally:
        trainer.close()
    s = trainer.summary
    console.say(
        f"success on {trainer.evaluated_on()}: {s['warm_start_success']:.0%} before, "
        f"{s['final_success']:.0%} after {trainer.step} steps; {s['wall_time_s'] / 60:.1f} min; "
        f"see {run_dir}/report.html"
    )
    return 0


def eval_metrics(result: EvalResult, quality: WorldModelQuality | None) -> dict[str, float]:
    """An evaluation under its metric names."""
    rates = {f"success/eval_{name}": won / total for name, (won, total) in result.by_type.items()}
    about_world = quality.metrics() if quality else {}
    return {
        "success/eval_rate": result.success, "success/eval_total": float(result.num_tasks),
        "reward/eval_score_mean": result.mean_score, **rates, **about_world,
        **{f"score/eval_{name}": value for name, value in result.mean_scores.items()},
    }  # fmt: skip


def episode_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Success, rewards and lengths of a step's episodes."""
    by_type = defaultdict(list)
    for t in trajectories:
        by_type[t.task.task_type].append(t.won)
    actions = [x for t in trajectories for x in t.transitions]
    mean = lambda values: float(np.mean(values)) if len(values) else 0.0  # noqa: E731
    return {
        "reward/mean": mean([t.episode_return for t in trajectories]),
        "reward/return_mean": mean([t.success_return for t in trajectories]),
        "reward/score_mean": mean([t.score for t in trajectories]),
        "success/rate": mean([t.won for t in trajectories]),
        "episode/length_mean": mean([len(t.transitions) for t in trajectories]),
        "episode/invalid_action_rate": mean([not x.valid for x in actions]),
        "episode/truncated_rate": mean([t.truncated for t in trajectories]),
        "episode/overrun_rate": mean([bool(t.overrun) for t in trajectories]),
        "episode/cut_rate": sum(t.num_cut for t in trajectories) / max(1, len(actions)),
        **{f"success/{name}": mean(won) for name, won in sorted(by_type.items())},
        **{
            f"score/{name}": sum(t.scores.get(name, 0.0) for t in trajectories) / len(trajectories)
            for name in sorted({name for t in trajectories for name in t.scores})
        },
    }
