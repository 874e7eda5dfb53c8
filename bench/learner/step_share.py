"""Counts what the world-model loss adds to an update and to a whole training step with its rollouts, on a GPU.

    python bench/learner/step_share.py --gpus 1xH100-80GB

Nothing is timed: operations and bytes are those of `paw_fast/planning/step_time.py`, which `paw-fast plan` prints, with
its assumed efficiencies; lengths are those of `paw_fast/planning/workload.py`. PaW adds the selected observation tokens
to the pass with gradient (`window`; in `trajectory` they are there already) and their rows to the LM head.

The last two columns tell what it would save not to multiply rows that are known to have no gradient (share
`--saturated` of the world-model rows: predicted with a probability of tau or more) in the two products of the head's
backward.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

from paw_fast.config import TrainConfig, load_preset
from paw_fast.planning.machine import Machine, parse_gpus
from paw_fast.planning.shapes import ModelShape, find_shape
from paw_fast.planning.step_time import FLOPS_SHARE, estimate_time, forward_flops
from paw_fast.planning.workload import estimate

RECIPES = {"alfworld": "qwen2.5-1.5b", "webshop": "qwen2.5-1.5b", "search": "qwen2.5-3b"}


@dataclass(frozen=True)
class Seconds:
    """Rollouts, token statistics and passes with gradient of a step without PaW; what PaW adds; what skipping the
    saturated rows would save."""

    rollout: float
    statistics: float
    update: float
    added: float
    saved: float

    @property
    def of_update(self) -> float:
        return self.added / (self.statistics + self.update)

    @property
    def of_step(self) -> float:
        return self.added / (self.rollout + self.statistics + self.update)


def count(config: TrainConfig, shape: ModelShape, machine: Machine, saturated: float) -> Seconds:
    work, paw = estimate(config, shape.max_positions), config.paw
    assert machine.card.flops is not None
    turns = work.episodes * work.turns
    observed = round(turns * work.lengths.observation * paw.alpha)
    rows = round(observed * paw.token_fraction)
    in_window = config.layout == "window"
    bare = round(turns * (work.lengths.prompt + work.lengths.action)) if in_window else work.trained
    off = dataclasses.replace(work, trained=bare, rows=work.sampled)
    time = estimate_time(config, shape, machine, off)
    assert time is not None
    rate, head = FLOPS_SHARE * machine.card.flops, 2 * shape.head_parameters
    passes = 3 + config.model.gradient_checkpointing
    through_layers = observed * forward_flops(shape, work.sequence) * passes if in_window else 0.0
    added = config.algo.epochs * (through_layers + 3 * head * rows) / rate
    return Seconds(time.rollout, time.statistics, time.update, added, 2 * head * rows * saturated / rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="1xH100-80GB")
    parser.add_argument("--saturated", type=float, default=0.9)
    args = parser.parse_args()
    machine = parse_gpus(args.gpus)
    print(
        f"{args.gpus}, vLLM, alpha 0.75, {args.saturated:.0%} of the world-model rows saturated\n\n"
        "| environment | layout | `--paw.token-fraction` | rollouts, token statistics, passes, s | PaW adds, of the "
        "update | of the whole step | saturated rows skipped, of the update | of the whole step |\n"
        + "| --- " * 8
        + "|"
    )
    for name, recipe in RECIPES.items():
        for layout in ("window", "trajectory"):
            for fraction in (1.0, 0.5):
                base = load_preset(recipe, name)
                config = dataclasses.replace(
                    base, layout=layout, rollout=dataclasses.replace(base.rollout, engine="vllm"),
                    paw=dataclasses.replace(base.paw, alpha=0.75, token_fraction=fraction),
                )  # fmt: skip
                s = count(config, find_shape(config), machine, args.saturated)
                update, step = s.statistics + s.update, s.rollout + s.statistics + s.update
                print(
                    f"| {name} | {layout} | {fraction:g} | {s.rollout:.0f}, {s.statistics:.0f}, {s.update:.0f} | "
                    f"{s.of_update:+.1%} | {s.of_step:+.1%} | {-s.saved / update:+.1%} | {-s.saved / step:+.1%} |"
                )


if __name__ == "__main__":
    main()
