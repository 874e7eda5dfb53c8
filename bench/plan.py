"""Compares the predicted peak memory of the trainer with the measured one, on the CPU, and prints a table.

    python bench/plan.py                    # every case: minutes, and at most 2 GB
    python bench/plan.py --case 30m-window  # one case

Each case is a process of its own that imports what training needs, takes a step of a model of almost no size (which
loads libraries and starts threads), and then real training steps on random tokens and weights: token statistics,
selection, the update of the learner. Measured is how much its peak resident memory (VmHWM) exceeds the resident memory
before the case; predicted is `planning.memory.predict_trainer` without rollouts, the process and the allocator. glibc's
malloc keeps freed blocks: a case is measured with MALLOC_MMAP_THRESHOLD_=1048576, which gives them back, and again with
malloc's defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paw_fast.config import TrainConfig, load_preset
from paw_fast.planning.machine import MIB, Card, Machine
from paw_fast.planning.memory import MMAP_THRESHOLD, Prediction, predict_trainer
from paw_fast.planning.shapes import ModelShape
from paw_fast.planning.workload import COMPACT, Workload


@dataclass(frozen=True)
class Case:
    """A model and a batch. turns: of an episode. prompt (the first), action, observation: typical lengths in tokens."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    layout: str = "window"
    checkpointing: bool = False
    token_budget: int = 4096
    episodes: int = 8
    turns: int = 4
    prompt: int = 200
    action: int = 20
    observation: int = 60
    kl: bool = False
    logits_mb: int = 64
    lora: int = 0

    def shape(self) -> ModelShape:
        return ModelShape(
            "case", "llama", self.hidden, self.layers, self.heads, self.kv_heads, self.hidden // self.heads, self.ffn,
            self.vocab,
        )  # fmt: skip

    def config(self) -> TrainConfig:
        base = load_preset("tiny")
        return dataclasses.replace(
            base, lora=dataclasses.replace(base.lora, rank=self.lora),
            layout=self.layout, token_budget=self.token_budget, logits_budget_mb=self.logits_mb,
            model=dataclasses.replace(base.model, device="cpu", gradient_checkpointing=self.checkpointing),
            algo=dataclasses.replace(base.algo, minibatches=1, kl_coef=0.01 if self.kl else 0.0),
            paw=dataclasses.replace(base.paw, selection="all", alpha=1.0, balance="fixed"),
            rollout=dataclasses.replace(base.rollout, gpus="0", placement="process"),
        )  # fmt: skip

    def workload(self) -> Workload:
        """The tokens of `episodes_of`."""
        from paw_fast.learner.sequences import build_sequences

        sequences = build_sequences(episodes_of(self), self.layout)
        lengths = [len(one.ids) for one in sequences]
        rows = sum(span.action[1] - span.action[0] + len(span.observation) for one in sequences for span in one.spans)
        mean = sum(lengths) // len(lengths)
        return Workload(self.episodes, self.turns, COMPACT, mean, max(lengths), sum(lengths), 0, rows)


CASES = {
    "2m-trajectory": Case(256, 2, 8, 2, 1024, 1024, "trajectory", token_budget=3072, episodes=9, turns=6),
    "30m-window": Case(512, 8, 8, 4, 1536, 8192, token_budget=1024, episodes=2),
    "30m-checkpointed": Case(512, 8, 8, 4, 1536, 8192, "trajectory", True, 1536, episodes=5),
    "135m-window-kl": Case(576, 30, 9, 3, 1536, 49152, token_budget=320, episodes=1, turns=2, kl=True),
    "135m-checkpointed": Case(576, 30, 9, 3, 1536, 49152, "window", True, 512, episodes=1, turns=3),
    "135m-lora-kl": Case(576, 30, 9, 3, 1536, 49152, token_budget=320, episodes=1, turns=2, kl=True, lora=16),
}


def predict(case: Case) -> Prediction:
    """The prediction for the case's learner, without rollouts, the process and what the allocator keeps.

    The token budget counts as what the largest micro-batch holds: few sequences leave gaps that long runs do not have.
    """
    from paw_fast.learner.packing import plan_micro_batches
    from paw_fast.learner.sequences import build_sequences

    config = case.config()
    lengths = [len(one.ids) - 1 for one in build_sequences(episodes_of(case), case.layout)]
    most = max(sum(lengths[i] for i in part) for part in plan_micro_batches(lengths, case.token_budget))
    machine = Machine("cpu", Card("RAM", 1 << 40))
    found = predict_trainer(dataclasses.replace(config, token_budget=most), case.shape(), machine, case.workload())
    return dataclasses.replace(
        found, parts=tuple(one for one in found.parts if one.name not in ("process", "allocator"))
    )


# ------------------------------------------------------------------------------------------------ the child process


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def episodes_of(case: Case) -> list[Any]:
    import numpy as np

    from paw_fast.types import EpisodeId, Task, Trajectory, Transition

    rng = np.random.default_rng(0)

    def draw(typical: int) -> tuple[int, ...]:
        """Random ids, from half of the typical length to one and a half."""
        count = int(rng.integers(typical // 2, typical + typical // 2 + 1))
        return tuple(int(i) for i in rng.integers(5, case.vocab, count))

    found = []
    for number in range(case.episodes):
        prompt, turns = draw(case.prompt), []
        for _ in range(case.turns):
            action, seen = draw(case.action), draw(case.observation)
            fields = (prompt, action, (-1.0,) * len(action), seen, (True,) * len(seen), "", "", "", 0.0, True)
            turns.append(Transition(*fields))
            prompt = prompt + action + seen if case.layout == "trajectory" else draw(case.prompt)
        reward = float(number % 2)
        found.append(Trajectory(Task("t"), EpisodeId(0, number // 2, number % 2), tuple(turns), reward, reward, False))
    return found


def learner_of(case: Case) -> Any:
    import copy

    from paw_fast.learner import Learner
    from paw_fast.models.lora import add_adapters
    from paw_fast.models.policy import BasePolicy, Policy
    from paw_fast.models.tiny import build_model

    config = case.config()
    model = build_model(
        case.vocab, hidden=case.hidden, layers=case.layers, heads=case.heads, kv_heads=case.kv_heads, ffn=case.ffn
    )
    adapter = add_adapters(model, config.lora, "case") if case.lora else None
    reference = Policy(copy.deepcopy(model).requires_grad_(False), None) if case.kl and not case.lora else None
    if case.checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})
    policy = Policy(model, None, adapter)
    if case.kl and case.lora:
        reference = BasePolicy(model, None, adapter)
    return Learner(policy, reference, config)


def take_steps(case: Case) -> None:
    """A training step with one episode, after which the optimizer has its states, and one with all episodes."""
    from paw_fast.algorithms import world_model
    from paw_fast.algorithms.base import make_algorithm

    learner, config, episodes = learner_of(case), case.config(), episodes_of(case)
    for step, played in enumerate((episodes[:1], episodes)):
        batch = learner.make_batch(played)
        stats = learner.compute_token_stats(batch)
        credit = make_algorithm(config).credit(batch, stats)
        learner.update(batch, stats, credit, world_model.select(batch, stats, config, step), step)


SMALL = Case(64, 1, 2, 2, 64, 300, episodes=2, turns=1, prompt=8, action=4, observation=4)


def child(case: Case) -> None:
    """Prints the resident memory before the case and the peak after it, in bytes."""
    take_steps(SMALL)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    take_steps(case)
    print(json.dumps({"before": before, "peak": resident("VmHWM")}))


def measure(case: Case, pinned: bool = True) -> tuple[int, int]:
    """Measured bytes of the case, and those of the process before it. pinned: malloc gives freed blocks back."""
    command = [sys.executable, __file__, "--child", json.dumps(dataclasses.asdict(case))]
    env = {name: value for name, value in os.environ.items() if name != MMAP_THRESHOLD}
    env |= {MMAP_THRESHOLD: "1048576"} if pinned else {}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=env, check=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak"] - found["before"], found["before"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="one case only")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Case(**json.loads(args.child)))
        return
    print("| case | parameters | predicted MiB | measured MiB | ratio | malloc's defaults MiB | process MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        if args.case in (None, name):
            predicted, (measured, process), (default, _) = predict(case).peak, measure(case), measure(case, False)
            row = (
                name, f"{case.shape().num_parameters / 1e6:.1f} M", f"{predicted / MIB:.0f}", f"{measured / MIB:.0f}",
                f"{predicted / measured:.3f}", f"{default / MIB:.0f}", f"{process / MIB:.0f}",
            )  # fmt: skip
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
