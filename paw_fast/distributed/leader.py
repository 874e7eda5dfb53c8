"""Leads the other ranks: rank 0 runs the trainer, and tells the others which method of their learner to call with it.

    rank 0      rollouts ─> compute_token_stats ─> credit, selection ─> update ─> gather ─> engines ─> save
    ranks 1...  follow():   compute_token_stats                         update    gather               save

Rollouts, environments and files are rank 0's alone, so that a run's episodes and metrics are those of one rank, and
only what runs the model is divided.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from paw_fast.algorithms.base import Credit
from paw_fast.algorithms.world_model import WorldModelWeights
from paw_fast.config import TrainConfig
from paw_fast.distributed import checkpoint as sharded
from paw_fast.distributed.learner import ShardedLearner
from paw_fast.distributed.ranks import Ranks, join_ranks
from paw_fast.errors import UserError
from paw_fast.evaluation.held_out_text import read_text
from paw_fast.evaluation.held_out_text import text_loss as text_loss_of
from paw_fast.evaluation.world_model import WorldModelQuality, measure_world_model
from paw_fast.learner import Learner
from paw_fast.learner.seen_passages import SeenPassages
from paw_fast.models.policy import Policy, load_policy
from paw_fast.rollout.weight_sync import Weights
from paw_fast.runs import console, stop_signals
from paw_fast.runs.checkpoint import Checkpoint, save_checkpoint
from paw_fast.runs.rng import capture_rng_states, restore_rng_states
from paw_fast.types import RolloutBatch, TokenStats, Trajectory

_STOP = "stop"
_current: Ranks | None = None


@contextmanager
def leading() -> Iterator[None]:
    """Context manager in which this process leads the ranks that a launcher has started. They end with it."""
    global _current
    _current = join_ranks()
    try:
        yield
    finally:
        ranks, _current = _current, None
        if not ranks.busy:  # else they wait for tensors, and torch's launcher ends them
            with suppress(RuntimeError):
                ranks.broadcast((_STOP, ()))
                ranks.leave()


def follow() -> int:
    """Carries out the commands of rank 0 until it ends; returns the exit status of this process."""
    stop_signals.ignore_in_child()  # rank 0 saves, then ends the others
    console.redirect(lambda line: None)  # rank 0 says it
    ranks = join_ranks()
    learner: ShardedLearner | None = None
    while True:
        try:
            name, args = ranks.broadcast()
        except RuntimeError:  # its connection is closed
            return 1
        if name == _STOP:
            ranks.leave()
            return 0
        with suppress(CheckpointException):  # rank 0 reports it
            if name == "setup":
                learner = _Commands.setup(ranks, *args)
            else:
                getattr(_Commands, name)(learner, *args)


class _Commands:
    """What every rank does at a command of rank 0."""

    @staticmethod
    def setup(
        ranks: Ranks, config: TrainConfig, model: str | Path, reference: str | Path | None, max_tokens: int | None
    ) -> ShardedLearner:
        policy = load_policy(model, config.model)
        frozen = None if reference is None else load_policy(reference, config.model, trainable=False)
        return ShardedLearner(ranks, policy, frozen, config, max_tokens)

    compute_token_stats = staticmethod(ShardedLearner.compute_token_stats)
    update = staticmethod(ShardedLearner.update)

    @staticmethod
    def gather(learner: ShardedLearner) -> None:
        for _ in learner.weights():
            pass

    @staticmethod
    def measure(
        learner: ShardedLearner, trajectories: Sequence[Trajectory], settings: dict[str, Any]
    ) -> WorldModelQuality | None:
        # A stop between batches would leave the other ranks waiting.
        return measure_world_model(learner.policy, trajectories, **settings, check=lambda: None)

    @staticmethod
    def text_loss(learner: ShardedLearner, config: TrainConfig, text: str) -> float:
        return text_loss_of(learner.policy, config, learner.chunk, text, check=lambda: None)

    @staticmethod
    def rng(learner: ShardedLearner) -> list[dict[str, Any]]:
        return learner.ranks.all_gather(capture_rng_states())

    @staticmethod
    def save(learner: ShardedLearner, folder: Path) -> None:
        sharded.save(learner, folder, learner.ranks.control)

    @staticmethod
    def restore(
        learner: ShardedLearner, folder: Path, scheduler: dict[str, Any], rng: Sequence[dict[str, Any]]
    ) -> None:
        sharded.load(learner, folder, learner.ranks.control)
        learner.scheduler.load_state_dict(scheduler)
        learner.apply_settings()
        if learner.ranks.rank < len(rng):
            restore_rng_states(rng[learner.ranks.rank])


class LeadingLearner(ShardedLearner):
    """The learner of rank 0: its methods have every rank call the same one."""

    def _together(self, name: str, *args: Any) -> Any:
        with self._all(name, *args):
            return getattr(_Commands, name)(self, *args)

    @contextmanager
    def _all(self, name: str, *args: Any) -> Iterator[None]:
        """Sends a command; this rank's part is in the block. An error in it leaves the others waiting."""
        self.ranks.broadcast((name, args))
        self.ranks.busy = True
        yield
        self.ranks.busy = False

    def compute_token_stats(self, batch: RolloutBatch) -> TokenStats:
        return self._together("compute_token_stats", batch)

    def update(
        self, batch: RolloutBatch, stats: TokenStats, credit: Credit, world_model: WorldModelWeights | None, step: int,
        report: Callable[[int, int, float], None] = lambda number, total, share: None,
    ) -> dict[str, float]:  # fmt: skip
        # What the others get must not be on this rank's device. They compute the weights of observation tokens again.
        stats = dataclasses.replace(stats, token_entropies=[one.cpu() for one in stats.token_entropies])
        world_model = None if world_model is None else dataclasses.replace(world_model, selection=None)
        with self._all("update", batch, stats, credit, world_model, step):
            return super().update(batch, stats, credit, world_model, step, report)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        with self._all("gather"):
            yield from super().weights()

    def measure(self, trajectories: Sequence[Trajectory], **settings: Any) -> WorldModelQuality | None:
        """`measure_world_model` of the sharded policy."""
        return self._together("measure", list(trajectories), settings)

    def text_loss(self, config: TrainConfig) -> float:
        """The loss of the sharded policy on the run's text. Its file is rank 0's."""
        return self._together("text_loss", config, read_text(config.eval_text))

    def save(self, run_dir: Path, state: dict[str, Any]) -> Path:
        """As `save_checkpoint`, with the states that resume the run in shards."""

        def save_states(folder: Path) -> None:
            try:
                self._together("save", folder / sharded.FOLDER)
            except CheckpointException as error:
                self.ranks.busy = False
                raise next((e for e in error.failures.values() if isinstance(e[0], OSError)), (error,))[0] from error

        states = {**state["rng_states"], "ranks": self._together("rng")}
        model = sharded.whole_model(self.policy, self.weights())
        return save_checkpoint(
            run_dir, model=model, tokenizer=self.policy.tokenizer, scheduler=self.scheduler, save_states=save_states,
            **{**state, "rng_states": states},
        )  # fmt: skip

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores the state of every rank, from a checkpoint of any number of ranks."""
        rng = list(checkpoint.rng_states.get("ranks", ()))
        self._together("restore", checkpoint.path, checkpoint.scheduler_state, rng)
        restore_rng_states(checkpoint.rng_states)


def check_ranks(config: TrainConfig) -> None:
    """Raises `UserError` where `--trainer.gpus` asks for processes that no launcher has started."""
    if config.trainer.gpus > 1 and (_current is None or _current.size != config.trainer.gpus):
        raise UserError(
            f"--trainer.gpus {config.trainer.gpus}: this is one process; several are started by `paw-fast train` and "
            "by `torchrun --nproc-per-node N -m paw_fast train`, not from Python"
        )


def make_learner(
    policy: Policy, reference: Policy | None, config: TrainConfig, max_tokens: int | None, passages: SeenPassages,
    model: str | Path, first_model: str | Path,
) -> tuple[Learner, Policy]:  # fmt: skip
    """The learner of a run, and the policy whose engine plays its rollouts: the same one, or, where several ranks
    train, a whole copy for rollouts in this process.

    model, first_model: from where the policy and the reference were loaded.
    """
    if config.trainer.gpus == 1:
        return Learner(policy, reference, config, max_tokens, passages), policy
    assert _current is not None
    inline = config.rollout.placement == "inline"
    played = Policy(copy.deepcopy(policy.model).requires_grad_(False), policy.tokenizer) if inline else None
    from_start = None if reference is None else first_model
    _current.broadcast(("setup", (config, model, from_start, max_tokens)))
    learner = LeadingLearner(_current, policy, reference, config, max_tokens, passages)
    return learner, played or learner.policy


def weights_of(learner: Learner) -> Weights | None:
    """What gathers the weights of a sharded learner; None where one process has them whole."""
    return learner.weights if isinstance(learner, LeadingLearner) else None


def save(learner: Learner, run_dir: Path, state: dict[str, Any]) -> Path:
    """Writes a checkpoint of a learner's weights and states and of the run's `state`."""
    if isinstance(learner, LeadingLearner):
        return learner.save(run_dir, state)
    model, tokenizer = learner.policy.saved_model, learner.policy.tokenizer
    return save_checkpoint(run_dir, model=model, tokenizer=tokenizer, **learner.stateful_parts(), **state)


def restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Restores a learner and the random generators; the checkpoint may be one of another number of ranks."""
    if isinstance(learner, LeadingLearner):
        learner.restore(checkpoint)
        return
    if (checkpoint.path / sharded.FOLDER).is_dir():
        sharded.load(learner, checkpoint.path)
        learner.scheduler.load_state_dict(checkpoint.scheduler_state or {})
        restore_rng_states(checkpoint.rng_states)
    else:
        checkpoint.restore(**learner.stateful_parts())
    learner.apply_settings()


def measure(learner: Learner, trajectories: Sequence[Trajectory], **settings: Any) -> WorldModelQuality | None:
    """`measure_world_model` of a learner's policy."""
    if isinstance(learner, LeadingLearner):
        return learner.measure(trajectories, **settings)
    return measure_world_model(learner.policy, trajectories, **settings)


def text_loss(learner: Learner, config: TrainConfig) -> float:
    """The loss of a learner's policy on the run's text (`--eval-text`), in nats per token."""
    if isinstance(learner, LeadingLearner):
        return learner.text_loss(config)
    return text_loss_of(learner.policy, config, learner.chunk)
