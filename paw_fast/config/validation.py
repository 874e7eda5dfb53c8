"""Validates configurations: values outside their range, and settings that contradict each other."""

from __future__ import annotations

import dataclasses
import datetime
import typing
from collections.abc import Callable, Iterator
from typing import Any

from paw_fast import registry
from paw_fast.config.ranges import LARGEST_SEED, LONGEST_WAIT_S, check_ranges, range_of
from paw_fast.config.schema import TrainConfig, WarmStartConfig
from paw_fast.config.services import log_services
from paw_fast.errors import UserError

LEAST_VOCAB = 256 + 5
"""A token for each byte, and the special ones of the `tiny` tokenizer."""
LARGEST_COUNT = 2**31 - 1
LARGEST_FLOAT = 2.0**127
"""The kernels and the optimizer compute in float32."""
AT_MOST: dict[str, int] = {
    "rollout.slots": 1 << 16, "rollout.groups": 1 << 16, "rollout.group-size": 1 << 16, "rollout.replicas": 1 << 10,
    "rollout.tensor-parallel": 1 << 10, "warm-start.layers": 1 << 10, "warm-start.vocab-size": 1 << 20,
    "rollout.max-sequence-tokens": 1 << 24, "seed": LARGEST_SEED,
}  # fmt: skip
"""Upper bounds of counts where they are not `LARGEST_COUNT`: they catch typing mistakes, far above any real use."""


def validate(config: TrainConfig) -> None:
    """Raises `UserError`, naming the option, for invalid settings. Called before anything is loaded."""

    def need(ok: bool, key: str, value: object, expected: str) -> None:
        if not ok:
            raise UserError(f"--{key} is {value}, expected {expected}")

    c = config
    _validate_sizes(c, need)
    check_ranges(c)
    c.env.check()
    log_services(c.log)
    need(0 < c.paw.alpha <= 1, "paw.alpha", c.paw.alpha, "a share in (0, 1]")
    need(0 < c.paw.tau <= 1, "paw.tau", c.paw.tau, "a probability in (0, 1]")
    need(c.paw.lambda_0 >= 0, "paw.lambda-0", c.paw.lambda_0, "0 or more")
    need(c.rollout.temperature > 0, "rollout.temperature", c.rollout.temperature, "more than 0")
    need(c.rollout.eval_temperature > 0, "rollout.eval-temperature", c.rollout.eval_temperature, "more than 0")
    for key, rate in (("optim", c.optim), ("warm-start", c.warm_start)):
        need(0 < rate.learning_rate <= 1, f"{key}.learning-rate", rate.learning_rate, "a rate in (0, 1]")
    need(c.optim.max_grad_norm > 0, "optim.max-grad-norm", c.optim.max_grad_norm, "more than 0")
    need(c.optim.weight_decay >= 0, "optim.weight-decay", c.optim.weight_decay, "0 or more")
    for key, share in (("optim.beta1", c.optim.beta1), ("optim.beta2", c.optim.beta2)):
        need(0 <= share < 1, key, share, "a number in [0, 1)")
    share = c.rollout.memory_share
    need(share is None or 0 < share < 1, "rollout.memory-share", share, "a share in (0, 1), or None")
    _validate_rollout(c, need)
    _validate_warm_start(c.warm_start, need)
    counts = {
        "seed": (c.seed, 0), "steps": (c.steps, 0),
        "rollout.groups": (c.rollout.groups, 1), "rollout.group-size": (c.rollout.group_size, 1),
        "rollout.max-action-tokens": (c.rollout.max_action_tokens, 1), "rollout.slots": (c.rollout.slots, 1),
        "rollout.tensor-parallel": (c.rollout.tensor_parallel, 1), "rollout.replicas": (c.rollout.replicas, 1),
        "rollout.cores": (c.rollout.cores, 0), "pipeline.max-staleness": (c.pipeline.max_staleness, 0),
        "paw.interval": (c.paw.interval, 1), "paw.horizon": (c.paw.horizon, 1),
        "token-budget": (c.token_budget, 16),
        "logits-budget-mb": (c.logits_budget_mb, 1), "save-every": (c.save_every, 1), "eval-every": (c.eval_every, 0),
        "eval-tasks": (c.eval_tasks, 1), "eval-transitions": (c.eval_transitions, 1),
        "keep-checkpoints": (c.keep_checkpoints, 1),
        "warm-start.episodes": (c.warm_start.episodes, 1), "warm-start.epochs": (c.warm_start.epochs, 1),
        "warm-start.layers": (c.warm_start.layers, 1), "warm-start.batch-tokens": (c.warm_start.batch_tokens, 1),
        "warm-start.vocab-size": (c.warm_start.vocab_size, LEAST_VOCAB),
        "rollout.max-sequence-tokens": (c.rollout.max_sequence_tokens, 16),
        "optim.warmup-steps": (c.optim.warmup_steps, 0),
        "episodes-to-write": (c.episodes_to_write, 0),
    }  # fmt: skip
    for key, (value, least) in counts.items():
        need(value >= least, key, value, f"{least} or more")
    _validate_combinations(c)
    c.algo.check(c)
    need(
        c.rollout.groups * c.rollout.group_size >= c.algo.minibatches,
        "algo.minibatches", c.algo.minibatches,
        f"at most the {c.rollout.groups * c.rollout.group_size} episodes of a step",
    )  # fmt: skip


def _validate_sizes(c: TrainConfig, need: Callable[[bool, str, object, str], None]) -> None:
    """Every number is one that the machine can compute with."""
    for key, value, has_bound in _numbers(c):
        if has_bound:
            continue
        if isinstance(value, float):
            need(abs(value) <= LARGEST_FLOAT, key, value, "a finite number")
        else:
            need(value <= AT_MOST.get(key, LARGEST_COUNT), key, value, f"at most {AT_MOST.get(key, LARGEST_COUNT)}")


def _numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, int | float, bool]]:
    """Every number among the settings: its option's name, its value, whether its `Range` has an upper bound."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value, key = getattr(config, f.name), prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            allowed = range_of(hints[f.name])
            yield key, value, isinstance(value, int) and allowed is not None and allowed.high is not None


def _validate_warm_start(w: WarmStartConfig, need: Callable[[bool, str, object, str], None]) -> None:
    for key, share in (
        ("noop-prob", w.noop_prob),
        ("noop-share", w.noop_share),
        ("mistake-prob", w.mistake_prob),
    ):
        need(0 <= share < 1, f"warm-start.{key}", share, "a chance in [0, 1)")
    need(w.observation_weight >= 0, "warm-start.observation-weight", w.observation_weight, "0 or more")


def _validate_rollout(c: TrainConfig, need: Callable[[bool, str, object, str], None]) -> None:
    r, p = c.rollout, c.pipeline
    limits = {
        "rollout.start-timeout-s": r.start_timeout_s, "rollout.sync-timeout-s": r.sync_timeout_s,
        "rollout.hang-timeout-s": r.hang_timeout_s, "rollout.max-episode-s": r.max_episode_s,
        "rollout.max-episode-tokens": r.max_episode_tokens, "pipeline.importance-cap": p.importance_cap,
        "pipeline.gap-warn": p.gap_warn, "pipeline.gap-stop": p.gap_stop,
    }  # fmt: skip
    for key, value in limits.items():
        need(value is None or value > 0, key, value, "more than 0")
        short = value is None or not key.endswith("-s") or value <= LONGEST_WAIT_S
        need(short, key, value, f"at most {LONGEST_WAIT_S:g}")
    need(_is_date(r.chat_date), "rollout.chat-date", r.chat_date, "a date as in 2026-11-25, or nothing")
    named = [name for name in r.gpus.split(",") if name]
    need(all(name.strip().isdigit() for name in named), "rollout.gpus", r.gpus, "numbers of devices, as in 1,2")
    wanted = r.replicas * r.tensor_parallel
    need(
        len(named) in (0, wanted), "rollout.gpus", r.gpus, f"{wanted} devices (replicas times tensor-parallel), or none"
    )
    need(
        r.engine == "vllm" or r.tensor_parallel == 1, "rollout.tensor-parallel", r.tensor_parallel,
        "1, or --rollout.engine vllm with it",
    )  # fmt: skip
    if r.placement == "inline":
        only = {
            "rollout.replicas": r.replicas > 1, "rollout.gpus": bool(named), "rollout.cores": r.cores > 0,
            "rollout.tensor-parallel": r.tensor_parallel > 1,
        }  # fmt: skip
        for key, given in only.items():
            need(not given, key, "given", "--rollout.placement process with it")
        need(
            p.name != "async", "pipeline", p.name, "--rollout.placement process with it: one process does one at a time"
        )
    need(
        p.name != "async" or not c.algo.dynamic_sampling,
        "pipeline",
        p.name,
        "sync or stream with --algo.dynamic-sampling",
    )


def _is_date(text: str) -> bool:
    try:
        return not text or datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _validate_combinations(c: TrainConfig) -> None:
    """Refuses settings that contradict each other. Raises `UserError`, naming both."""

    def refuse(wrong: bool, message: str) -> None:
        if wrong:
            raise UserError(message)

    r, env = c.rollout, registry.find("environments", c.env.name)
    refuse(
        c.model.path == "tiny" and env.make_expert is None,
        f"--model tiny is trained on expert demonstrations first, and --env {c.env.name} has no expert: give its class "
        "an Expert, or take another --model",
    )
    refuse(
        r.max_action_tokens >= r.max_sequence_tokens,
        f"--rollout.max-action-tokens is {r.max_action_tokens}, expected less than the {r.max_sequence_tokens} of "
        "--rollout.max-sequence-tokens: a prompt must fit before it",
    )
    refuse(
        c.model.dtype == "float16",
        "--model.dtype is float16, in which most of a loss's gradient underflows to zero: train in bfloat16 or float32 "
        "(float16 is for paw-fast eval)",
    )
    refuse(
        c.paw.horizon > 1 and c.layout == "trajectory",
        f"--paw.horizon is {c.paw.horizon} and --layout trajectory: there every observation already follows all that "
        "was before it, so more than one step means nothing; say --layout window",
    )
