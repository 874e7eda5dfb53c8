"""Validates configurations: numbers outside their range, and settings that contradict each other."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from paw_fast import registry
from paw_fast.config.lora import LoraConfig
from paw_fast.config.ranges import check_ranges
from paw_fast.config.schema import TrainConfig
from paw_fast.config.services import log_services
from paw_fast.errors import UserError


def validate(config: TrainConfig) -> None:
    """Raises `UserError`, naming the option, for invalid settings. Called before anything is loaded."""

    def need(ok: bool, key: str, value: object, expected: str) -> None:
        if not ok:
            raise UserError(f"--{key} is {value}, expected {expected}")

    c = config
    check_ranges(c)
    c.env.check()
    log_services(c.log)
    _validate_rollout(c, need)
    _validate_combinations(c)
    c.algo.check(c)
    need(
        c.rollout.groups * c.rollout.group_size >= c.algo.minibatches,
        "algo.minibatches", c.algo.minibatches,
        f"at most the {c.rollout.groups * c.rollout.group_size} episodes of a step",
    )  # fmt: skip


def _validate_rollout(c: TrainConfig, need: Callable[[bool, str, object, str], None]) -> None:
    r, p = c.rollout, c.pipeline
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
    refuse(c.push_private and c.push_to_hub is None, "--push-private has no effect without --push-to-hub NAME")
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
    for option, wrong in (
        ("alpha", c.lora.alpha != LoraConfig.alpha), ("dropout", c.lora.dropout > 0), ("head", c.lora.head)
    ):  # fmt: skip
        refuse(wrong and not c.lora.rank, f"--lora.{option} has no effect without --lora.rank")
    refuse(
        c.lora.rank > 0 and c.rollout.transport == "ipc",
        "--rollout.transport ipc shares the weights as they are, and with --lora.rank they are merged for the engine: "
        "say shared, or auto",
    )
    refuse(
        c.lora.rank > 0 and c.offload.reference,
        "--offload.reference: with --lora.rank the reference is the model without its adapters, and there is nothing "
        "to offload: leave it out",
    )
    refuse(
        c.offload.reference and c.algo.kl_coef == 0,
        "--offload.reference has no effect: --algo.kl-coef is 0, so there is no reference model",
    )
    refuse(
        c.paw.horizon > 1 and c.layout == "trajectory",
        f"--paw.horizon is {c.paw.horizon} and --layout trajectory: there every observation already follows all that "
        "was before it, so more than one step means nothing; say --layout window",
    )
