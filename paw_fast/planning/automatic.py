"""Chooses the settings that a user leaves open for a machine: engine, schedule, and what decides a GPU's memory.

    settings with `auto` and None + machine ──> choose ──> the same settings with values, and a reason for each

A run stores the values in its config.toml, so that a resume continues with them. On the CPU they are constants; on a
GPU the memory settings are the fastest ones whose predicted peak (`memory.predict_trainer`) the GPU holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from paw_fast.config import TrainConfig
from paw_fast.errors import UserError
from paw_fast.planning.activations import cache_bytes
from paw_fast.planning.machine import GIB, MIB, Machine
from paw_fast.planning.memory import (
    OPTIMIZER,
    PHASES,
    UPDATE,
    VLLM_OVERHEAD,
    VLLM_SHARE,
    element_size,
    predict_trainer,
    rollouts_share_device,
    vllm_least,
    vllm_shares_device,
    vllm_sleeps,
)
from paw_fast.planning.shapes import ModelShape, find_shape
from paw_fast.planning.workload import Workload, estimate

MEMORY_SHARE = 0.9
"""Assumption: settings are chosen for this share of a GPU's memory, because no prediction was compared with a GPU."""
LOGITS_SHARE = 0.026
"""`kernels.linear_paw_loss.CUDA_CHUNK_SHARE`: share of a GPU's memory for a chunk of logits."""
TOKEN_BUDGETS = (32768, 16384, 8192, 4096, 2048, 1024)
"""Values of `token_budget` that are tried. Larger micro-batches are no faster, smaller ones leave a GPU idle."""
FEWEST_WITHOUT_CHECKPOINTING = 4096
"""Assumption: micro-batches of at least so many tokens keep a GPU busy, so that they cost less than recomputing the
activations of larger ones, which takes a third of the update."""
LARGEST_SHARE = 0.8
"""Largest `rollout.memory_share` that is chosen where vLLM sleeps during updates; `VLLM_SHARE` where it does not."""
SHARE_STEP = 0.05


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen: its option and value as on a command line, and why."""

    option: str
    value: str
    reason: str

    @property
    def text(self) -> str:
        return f"{self.option} {self.value}".strip()


@dataclass(frozen=True)
class Choices:
    """Settings without `auto` and None. Produced by `choose`, consumed when a run starts and by `paw-fast plan`.

    config: all settings. made: those that were chosen. machine: in words. fits: whether the predicted memory is
    available; None where it was not predicted.
    """

    config: TrainConfig
    made: tuple[Choice, ...]
    machine: str
    fits: bool | None

    @property
    def line(self) -> str:
        """What was chosen, in one line for the user; empty where nothing was."""
        if not self.made:
            return ""
        words = [f"{one.text} ({one.reason})" if one.option == "--rollout.engine" else one.text for one in self.made]
        return f"settings for {self.machine}: {', '.join(words)}; name an option to get another value"

    @property
    def notes(self) -> list[str]:
        """A line for each choice, for the head of config.toml."""
        return [f"chosen for {self.machine}: {one.text}: {one.reason}" for one in self.made]


def choose(config: TrainConfig, machine: Machine, vllm_problem: str | None = None) -> Choices:
    """Chooses a value for every setting that is `auto` or None and depends on the machine; given values are kept.

    vllm_problem: why vLLM cannot generate on a GPU here; None where it can.

    Raises `UserError` for given settings that no choice fits.

    >>> from paw_fast.planning.machine import Card
    >>> done = choose(TrainConfig(), Machine("cpu", Card("RAM", 16 * GIB)))
    >>> done.config.rollout.engine, done.config.pipeline.name, done.config.token_budget
    ('transformers', 'sync', 16384)
    """
    known, unknown = None, ""
    if machine.kind == "cuda":
        try:
            shape = find_shape(config)
            known = shape, estimate(config, shape.max_positions)
        except UserError as error:
            unknown = str(error)
    engine, why = _engine(config, machine, vllm_problem)
    done = _choose_rest(config, machine, engine, why, known, unknown)
    if config.rollout.engine == "auto" and engine == "vllm" and done.fits is False and config.rollout.gpus == "":
        why = "vLLM does not fit beside the trainer on this GPU"
        other = _choose_rest(config, machine, "transformers", why, known, unknown)
        if other.fits and config.rollout.tensor_parallel == 1:
            return other
    return done


def _choose_rest(
    config: TrainConfig, machine: Machine, engine: str, why: str, known: tuple[ModelShape, Workload] | None,
    unknown: str,
) -> Choices:  # fmt: skip
    """The choices with an engine: pipeline, sleep, memory."""
    made: list[Choice] = []
    before, name = config, config.pipeline.name
    if config.rollout.engine == "auto":
        made.append(Choice("--rollout.engine", engine, why))
    config = _set(config, "rollout", engine=engine)
    if name == "auto":
        name, why = _pipeline(config, machine)
        made.append(Choice("--pipeline", name, why))
        config = _set(config, "pipeline", name=name)
    made += _sleep(config, machine)
    if machine.kind != "cuda":
        config, fits = _without_gpu(config), None
    elif known is None:
        config, fits = _without_gpu(config), None
        if vllm_shares_device(config, machine) and config.rollout.memory_share is None:
            config = _set(config, "rollout", memory_share=VLLM_SHARE)
        made += _memory_choices(before, config, f"memory was not predicted: {unknown}")
    else:
        config, peak, fits = _fit(config, machine, *known)
        have = f"{machine.card.memory / GIB:.1f} GiB"
        made += _memory_choices(before, config, f"predicted peak {peak / GIB:.1f} of {have}")
    words = "the CPU" if machine.kind != "cuda" else f"{machine.card.name} ({machine.card.memory / GIB:.1f} GiB)"
    return Choices(config, tuple(made), words, fits)


def _set(config: TrainConfig, table: str, **values: Any) -> TrainConfig:
    return replace(config, **{table: replace(getattr(config, table), **values)})


# ---------------------------------------------------------------------------------- engine, pipeline, sleep


def _engine(config: TrainConfig, machine: Machine, problem: str | None) -> tuple[str, str]:
    """The engine, and why it is taken. Raises `UserError` where it must be vLLM and cannot be."""
    r = config.rollout
    if r.engine != "auto":
        return r.engine, ""
    if machine.kind != "cuda":
        engine, why = "transformers", "the device is the CPU"
    elif problem:
        engine, why = "transformers", problem
    else:
        engine, why = "vllm", "vLLM is installed and the device is a GPU"
    if engine == "transformers" and r.tensor_parallel > 1:
        raise UserError(
            f"--rollout.tensor-parallel is {r.tensor_parallel}, which needs vLLM, and --rollout.engine auto does not "
            f"take it: {why}; say --rollout.tensor-parallel 1, or --rollout.engine vllm"
        )
    return engine, why


def _pipeline(config: TrainConfig, machine: Machine) -> tuple[str, str]:
    """The schedule, and why it is taken."""
    p = config.pipeline
    if machine.kind != "cuda":
        return "sync", "the device is the CPU"
    if not rollouts_share_device(config) and p.max_staleness and not config.algo.dynamic_sampling:
        return "async", f"rollouts have GPUs of their own, and --pipeline.max-staleness {p.max_staleness} is given"
    if config.model.path == "tiny":
        return "sync", "the steps of the tiny model are short"
    return "stream", "token statistics overlap with rollouts, and the updates are those of sync"


def _sleep(config: TrainConfig, machine: Machine) -> list[Choice]:
    """What `--rollout.sleep auto` means, where vLLM is used; it stays `auto`, since other settings decide it.

    Raises `UserError` where sleeping is asked for and impossible.
    """
    given, problem = config.rollout.sleep, ""
    if config.rollout.engine != "vllm":
        problem = f"--rollout.engine is {config.rollout.engine}, and only vLLM can sleep"
    elif machine.kind != "cuda":
        problem = "vLLM's sleep mode needs CUDA, and the device is the CPU"
    elif not rollouts_share_device(config):
        problem = "rollouts have GPUs of their own, which the trainer does not need"
    elif config.pipeline.name == "async":
        problem = "with --pipeline async episodes are generated during updates"
    if given == "on" and problem:
        raise UserError(f"--rollout.sleep on: {problem}; say --rollout.sleep auto")
    if given != "auto" or config.rollout.engine != "vllm":
        return []
    return [Choice("--rollout.sleep", "off" if problem else "on", problem or "trainer and vLLM share a GPU")]


# -------------------------------------------------------------------------------------------------- memory


def _without_gpu(config: TrainConfig) -> TrainConfig:
    """The constants that are used without a prediction. vLLM's share of the RAM is left to its engine."""
    config = _set(config, "model", gradient_checkpointing=bool(config.model.gradient_checkpointing))
    return replace(config, token_budget=config.batch_tokens, logits_budget_mb=config.logits_bytes // MIB)


def _memory_choices(before: TrainConfig, now: TrainConfig, reason: str) -> Iterator[Choice]:
    """Those of the memory settings that were left open."""
    if before.token_budget is None:
        yield Choice("--token-budget", str(now.token_budget), reason)
    if before.logits_budget_mb is None:
        yield Choice("--logits-budget-mb", str(now.logits_budget_mb), reason)
    if before.model.gradient_checkpointing is None:
        no = "" if now.model.gradient_checkpointing else "no-"
        yield Choice(f"--model.{no}gradient-checkpointing", "", reason)
    if before.rollout.memory_share != now.rollout.memory_share:
        yield Choice("--rollout.memory-share", f"{now.rollout.memory_share:g}", reason)


def _fit(config: TrainConfig, machine: Machine, shape: ModelShape, work: Workload) -> tuple[TrainConfig, int, bool]:
    """The fastest memory settings that fit, their predicted peak in bytes, and whether they fit.

    First with room for the keys and values of all slots in vLLM, then with the least that it can generate with. Where
    nothing fits, the settings with the lowest peak.
    """
    limit, b = int(MEMORY_SHARE * machine.card.memory), element_size(config, machine.kind)
    in_flight = min(config.rollout.slots, work.episodes)
    all_slots = shape.num_parameters * b + in_flight * work.sequence * cache_bytes(shape, b)
    least = vllm_least(config, shape, work, b)
    lowest: tuple[TrainConfig, int] | None = None
    for needed in (max(least, all_slots // config.rollout.tensor_parallel + VLLM_OVERHEAD), least):
        for tried in _candidates(config, machine, work):
            tried = _with_share(tried, machine, shape, work, limit, needed)
            peak = predict_trainer(tried, shape, machine, work).peak
            if peak <= limit:
                return tried, peak, True
            if lowest is None or peak < lowest[1]:
                lowest = tried, peak
    assert lowest is not None
    return *lowest, False


def _candidates(config: TrainConfig, machine: Machine, work: Workload) -> Iterator[TrainConfig]:
    """The values of the open memory settings, the fastest first."""
    budgets = [n for n in TOKEN_BUDGETS if n >= work.longest] or list(TOKEN_BUDGETS[:1])
    budgets = budgets if config.token_budget is None else [config.token_budget]
    given = config.model.gradient_checkpointing
    pairs = [(False, n) for n in budgets if given is False or n >= FEWEST_WITHOUT_CHECKPOINTING]
    pairs = [*(pairs if not given else []), *((True, n) for n in budgets if given is not False)]
    whole = max(1, int(LOGITS_SHARE * machine.card.memory) // MIB)
    chunks = (whole, max(1, whole // 4)) if config.logits_budget_mb is None else (config.logits_budget_mb,)
    for checkpointing, tokens in pairs:
        for chunk in chunks:
            tried = _set(config, "model", gradient_checkpointing=checkpointing)
            yield replace(tried, token_budget=tokens, logits_budget_mb=chunk)


def _with_share(
    config: TrainConfig, machine: Machine, shape: ModelShape, work: Workload, limit: int, needed: int
) -> TrainConfig:
    """The config with the largest share for vLLM that leaves the trainer its memory, and at least `needed` bytes."""
    if not vllm_shares_device(config, machine) or config.rollout.memory_share is not None:
        return config
    sleeps = vllm_sleeps(config, machine)
    awake = [name for name in PHASES if not sleeps or name not in (UPDATE, OPTIMIZER)]
    found = predict_trainer(_set(config, "rollout", memory_share=SHARE_STEP), shape, machine, work)
    vllm = sum(part.size for part in found.parts if part.name == "vLLM")
    copies = config.rollout.replicas if config.rollout.placement == "process" else 1
    room = (limit - max(found.phase(name) - vllm for name in awake)) / (copies * machine.card.memory)
    most = min(room, LARGEST_SHARE if sleeps else VLLM_SHARE)
    # Rounded first: 0.55 / 0.05 is less than 11 in floating point.
    down, up = (
        math.floor(round(most / SHARE_STEP, 6)) * SHARE_STEP,
        math.ceil(round(needed / machine.card.memory / SHARE_STEP, 6)) * SHARE_STEP,
    )
    return _set(config, "rollout", memory_share=round(min(max(down, up), 0.95), 2))
