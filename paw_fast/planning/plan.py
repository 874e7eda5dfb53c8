"""Predicts memory and time of a run on a machine, and finds the settings with which it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from paw_fast.config import TrainConfig
from paw_fast.planning.machine import GIB, MIB, Machine
from paw_fast.planning.memory import (
    FITS,
    TIGHT,
    TOO_LARGE,
    VLLM_SHARE,
    Prediction,
    element_size,
    predict_rollout,
    predict_trainer,
    rollouts_share_device,
    vllm_least,
    vllm_shares_device,
)
from paw_fast.planning.shapes import ModelShape, find_shape
from paw_fast.planning.step_time import StepTime, estimate_time
from paw_fast.planning.workload import Workload, estimate

LEAST_TOKENS, LEAST_SLOTS, LEAST_LOGITS_MB = 1024, 8, 64
"""Values below which a setting is not lowered: passes over few tokens and few episodes at a time waste a device."""


@dataclass(frozen=True)
class Change:
    """A setting that needs less memory and does not change what is learned. value: empty for a switch. peak: bytes that
    the trainer's device needs with it."""

    option: str
    value: str
    config: TrainConfig
    peak: int
    verdict: str

    @property
    def text(self) -> str:
        return f"{self.option} {self.value}".strip()


@dataclass(frozen=True)
class Plan:
    """What `paw-fast plan` shows. Produced by `make_plan`.

    devices: the trainer's first, then a rollout GPU where there is one. alone: changes each of which makes the run fit.
    together: changes that do so, or may, only together; both are empty where the
    run fits or nothing helps.
    """

    config: TrainConfig
    shape: ModelShape
    machine: Machine
    work: Workload
    devices: tuple[Prediction, ...]
    time: StepTime | None
    alone: tuple[Change, ...] = ()
    together: tuple[Change, ...] = ()

    @property
    def trainer(self) -> Prediction:
        return self.devices[0]

    @property
    def verdict(self) -> str:
        """The worst of the devices' verdicts."""
        verdicts = [device.verdict for device in self.devices]
        return TOO_LARGE if TOO_LARGE in verdicts else next((one for one in verdicts if one != FITS), FITS)

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes to make: the first that suffices alone, or those that do together."""
        return self.alone[:1] or self.together


def make_plan(config: TrainConfig, machine: Machine) -> Plan:
    """The prediction for a run. Raises `UserError` for models whose memory cannot be predicted."""
    shape = find_shape(config)
    work = estimate(config, shape.max_positions)
    trainer = predict_trainer(config, shape, machine, work)
    devices = [trainer]
    if not rollouts_share_device(config):
        devices.append(predict_rollout(config, shape, machine, work))
    alone = together = ()
    if trainer.verdict != FITS:
        alone = _alone(config, shape, machine, work)
        together = () if alone else tuple(_together(config, shape, machine, work))
    time = estimate_time(config, shape, machine, work)
    return Plan(config, shape, machine, work, tuple(devices), time, alone, together)


def problem(plan: Plan) -> str:
    """What does not fit and what helps, in one line; empty where all fits."""
    found = next((device for device in plan.devices if device.verdict != FITS), None)
    if found is None:
        return ""
    need, have = size_text(found.peak), size_text(found.available)
    larger, part = found.largest, found.peak_phase
    text = (
        f"{found.device}: {found.verdict}: about {need} at the peak ({part}) of {have}; the largest part: "
        f"{larger.name}, {size_text(larger.size)}"
    )
    if found is not plan.trainer:
        return f"{text}; take a card with more memory, or more GPUs with --rollout.tensor-parallel (vLLM)"
    return f"{text}; {remedy(plan)}"


def remedy(plan: Plan) -> str:
    """Which settings make the run fit, in words."""
    if plan.alone:
        first, *others = plan.alone
        more = f", or {' or '.join(change.text for change in others)}" if others else ""
        return f"it fits with {first.text} ({size_text(first.peak)}){more}"
    if plan.together:
        last = plan.together[-1]
        may = "it fits" if last.verdict == FITS else "it may fit"
        return f"{may} with {' '.join(change.text for change in plan.together)} ({size_text(last.peak)})"
    adapters = "" if plan.config.lora.rank else "train adapters (--lora.rank 32), or "
    return f"no setting of its memory makes it fit: {adapters}take a smaller --model or a device with more memory"


def count_text(count: int) -> str:
    """
    >>> count_text(1_543_714_304), count_text(2_400_000)
    ('1.54 B', '2.4 M')
    """
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"


def size_text(count: int) -> str:
    """
    >>> size_text(3 << 29), size_text(5 << 20)
    ('1.5 GiB', '5 MiB')
    """
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


# ------------------------------------------------------------------------------------------------- the changes


def _lower(
    config: TrainConfig, option: str, shape: ModelShape, machine: Machine, work: Workload
) -> Iterator[tuple[str, TrainConfig]]:
    """The smaller and smaller values of an option with their configs; nothing where it has no effect."""
    r = config.rollout
    if option == "--model.gradient-checkpointing" and not config.model.gradient_checkpointing:
        yield "", replace(config, model=replace(config.model, gradient_checkpointing=True))
    elif option == "--offload.optimizer" and machine.kind == "cuda" and not config.offload.optimizer:
        yield "", replace(config, offload=replace(config.offload, optimizer=True))
    elif option == "--offload.reference" and machine.kind == "cuda" and not config.offload.reference:
        if config.algo.kl_coef > 0 and not config.lora.rank:
            yield "", replace(config, offload=replace(config.offload, reference=True))
    elif option == "--token-budget":
        value = config.token_budget // 2
        while value >= max(LEAST_TOKENS, work.longest):
            yield str(value), replace(config, token_budget=value)
            value //= 2
    elif option == "--logits-budget-mb":
        value = config.logits_budget_mb // 2
        while value >= LEAST_LOGITS_MB:
            yield str(value), replace(config, logits_budget_mb=value)
            value //= 2
    elif option == "--rollout.slots" and not vllm_shares_device(config, machine) and rollouts_share_device(config):
        value = r.slots // 2
        while value >= LEAST_SLOTS:
            yield str(value), replace(config, rollout=replace(r, slots=value))
            value //= 2
    elif option == "--rollout.memory-share" and vllm_shares_device(config, machine):
        b = element_size(config, machine.kind)
        least = vllm_least(config, shape, work, b) / machine.card.memory
        share = round((r.memory_share or VLLM_SHARE) - 0.05, 2)
        while share >= max(0.05, least):
            yield f"{share:g}", replace(config, rollout=replace(r, memory_share=share))
            share = round(share - 0.05, 2)


_OPTIONS = (
    "--token-budget", "--rollout.memory-share", "--rollout.slots", "--logits-budget-mb",
    "--model.gradient-checkpointing", "--offload.reference", "--offload.optimizer",
)  # fmt: skip
"""In the order in which they are proposed: those that cost the least time first."""


def _alone(config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload) -> tuple[Change, ...]:
    """The changes each of which makes the run fit; to the CPU's memory only where no other does."""
    made: list[Change] = []
    for option in _OPTIONS:
        if made and option.startswith("--offload"):
            break
        for value, changed in _lower(config, option, shape, machine, work):
            found = predict_trainer(changed, shape, machine, work)
            if found.verdict == FITS:
                made.append(Change(option, value, changed, found.peak, found.verdict))
                break
    return tuple(made)


def _together(config: TrainConfig, shape: ModelShape, machine: Machine, work: Workload) -> list[Change]:
    """Lowers one setting after the other, each as far as it lowers the peak, until the run fits; empty if it cannot."""
    before = predict_trainer(config, shape, machine, work)
    peak, made, may_fit = before.peak, {}, []
    for option in (*_OPTIONS, *_OPTIONS):  # again: another phase may have the peak now
        for value, changed in _lower(config, option, shape, machine, work):
            found = predict_trainer(changed, shape, machine, work)
            if found.peak >= peak:
                continue
            peak, config = found.peak, changed
            made[option] = Change(option, value, changed, found.peak, found.verdict)
            if found.verdict == FITS:
                return list(made.values())
            if found.verdict == TIGHT and before.verdict == TOO_LARGE and not may_fit:
                may_fit = list(made.values())
    return may_fit
