"""Starts the rollout worker of a run: processes, or the agent loop in this process."""

from __future__ import annotations

from pathlib import Path

from paw_fast.config import TrainConfig
from paw_fast.envs.base import Env
from paw_fast.models.policy import Policy
from paw_fast.rollout.agent_loop import Stage
from paw_fast.rollout.factory import make_engine, make_loop
from paw_fast.rollout.timeouts import time_limit
from paw_fast.rollout.weight_sync import GatheredWeights, Weights
from paw_fast.rollout.worker import LocalRolloutWorker, RolloutWorker
from paw_fast.rollout.worker_pool import RolloutWorkerPool
from paw_fast.runs import progress


def start_worker(
    config: TrainConfig, policy: Policy, env: Env, folder: Path, version: int, stage: Stage,
    weights: Weights | None = None,
) -> RolloutWorker:  # fmt: skip
    """Returns a running worker with the weights of `policy`, which have had `version` updates.

    env: used by a worker in this process. folder: for the output of worker processes. stage: called around the parts of
    a rollout. weights: gathers those of a policy that is sharded, and of which `policy` is a copy for a worker in this
    process. Raises `UserError` or `EngineError` if the worker does not start in time.
    """
    if config.rollout.placement == "process":
        count = config.rollout.replicas
        with progress.phase("starting workers", name=f"starting {count} rollout worker{'s' * (count > 1)}"):
            return RolloutWorkerPool(config, policy, folder, version, stage, weights)
    limit, what = config.rollout.start_timeout_s, "the engine of this process to start"
    with progress.phase("starting the engine"), time_limit(limit, what, "--rollout.start-timeout-s"):
        engine = make_engine(policy, config, GatheredWeights(weights) if weights else None)
    loop = make_loop(policy.tokenizer, policy.model.config, engine, env, config, stage)
    worker = LocalRolloutWorker(loop, config.rollout.sync_timeout_s)
    if version:
        worker.update_weights(version)
    return worker
