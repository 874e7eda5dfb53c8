"""Compares the predicted peak memory of the trainer with the measured one, on the CPU, and prints a table.

    python bench/plan.py                    # every case; a minute or two, at most 3 GB
    python bench/plan.py --case 30m-window  # one case

Each case is a process of its own that imports what training needs, takes one small step (which loads libraries and starts
threads), and then takes real training steps: token statistics, selection, the update of the learner, on random tokens
and weights. Measured is how much its peak resident memory (VmHWM) exceeds the resident memory before the case; predicted is
`planning.memory.predict_trainer` without the constant of the process, which the last column measures. Rollouts are left out.
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
from paw_fast.planning.memory import Prediction, predict_trainer
from paw_fast.planning.shapes import ModelShape
from paw_fast.planning.workload import COMPACT, Workload


@dataclass(frozen=True)
class Case:
    """A model and a batch. turns: of an episode. Lengths in tokens: of the first prompt, each action and observation."""

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

    def shape(self) -> ModelShape:
        return ModelShape(
            "case", "llama", self.hidden, self.layers, self.heads, self.kv_heads, self.hidden // self.heads, self.ffn,
            self.vocab,
        )  # fmt: skip

    def config(self) -> TrainConfig:
        base = load_preset("tiny")
        return dataclasses.replace(
            base, layout=self.layout, token_budget=self.token_budget, logits_budget_mb=self.logits_mb,
            model=dataclasses.replace(base.model, device="cpu", gradient_checkpointing=self.checkpointing),
            algo=dataclasses.replace(base.algo, minibatches=1, kl_coef=0.01 if self.kl else 0.0),
            paw=dataclasses.replace(base.paw, selection="all", alpha=1.0, balance="fixed"),
            rollout=dataclasses.replace(base.rollout, gpus="0", placement="process"),
        )  # fmt: skip

    def workload(self) -> Workload:
        turn = self.action + self.observation
        whole = self.prompt + self.turns * turn if self.layout == "trajectory" else self.prompt + turn
        trained = self.episodes * whole * (1 if self.layout == "trajectory" else self.turns)
        rows = self.episodes * self.turns * (turn - 1)
        return Workload(self.episodes, self.turns, COMPACT, whole, whole, trained, 0, rows)


CASES = {
    "tiny-2m-trajectory": Case(256, 2, 8, 2, 1024, 1024, "trajectory", token_budget=4096, episodes=14, turns=6),
    "30m-window": Case(512, 8, 8, 4, 1536, 8192, token_budget=2048, episodes=4),
    "30m-window-kl": Case(512, 8, 8, 4, 1536, 8192, token_budget=1024, episodes=2, kl=True),
    "30m-checkpointed": Case(512, 8, 8, 4, 1536, 8192, "trajectory", True, 3072, episodes=8, turns=6),
    "135m-window": Case(576, 30, 9, 3, 1536, 49152, token_budget=1024, episodes=2),
    "135m-checkpointed": Case(576, 30, 9, 3, 1536, 49152, "window", True, 1024, episodes=2),
}


def predict(case: Case) -> Prediction:
    """The prediction for the case's learner, without rollouts and without the constant of the process."""
    found = predict_trainer(
        case.config(), case.shape(), Machine("cpu", Card("RAM", 1 << 40)), case.workload()
    )
    return dataclasses.replace(found, parts=tuple(part for part in found.parts if part.name != "process"))


# ------------------------------------------------------------------------------------------------ the child process


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def episodes_of(case: Case) -> list[Any]:
    import numpy as np

    from paw_fast.types import EpisodeId, Task, Trajectory, Transition

    rng = np.random.default_rng(0)
    draw = lambda count: tuple(int(i) for i in rng.integers(5, case.vocab, count))  # noqa: E731
    found = []
    for number in range(case.episodes):
        prompt, turns = draw(case.prompt), []
        for _ in range(case.turns):
            action, seen = draw(case.action), draw(case.observation)
            turns.append(Transition(prompt, action, (-1.0,) * len(action), seen, (True,) * len(seen), "", "", "", 0.0, True))
            prompt = prompt + action + seen if case.layout == "trajectory" else draw(case.prompt)
        reward = float(number % 2)
        found.append(Trajectory(Task("t"), EpisodeId(0, number // 2, number % 2), tuple(turns), reward, reward, False))
    return found


def learner_of(case: Case) -> Any:
    import copy

    from paw_fast.learner import Learner
    from paw_fast.models.policy import Policy
    from paw_fast.models.tiny import build_model

    model = build_model(
        case.vocab, hidden=case.hidden, layers=case.layers, heads=case.heads, kv_heads=case.kv_heads, ffn=case.ffn
    )
    reference = Policy(copy.deepcopy(model).requires_grad_(False), None) if case.kl else None
    if case.checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})
    return Learner(Policy(model, None), reference, case.config())


def take_steps(case: Case, count: int) -> None:
    from paw_fast.algorithms import world_model
    from paw_fast.algorithms.base import make_algorithm

    learner, config = learner_of(case), case.config()
    for step in range(count):
        batch = learner.make_batch(episodes_of(case))
        stats = learner.compute_token_stats(batch)
        credit = make_algorithm(config).credit(batch, stats)
        learner.update(batch, stats, credit, world_model.select(batch, stats, config, step), step)


SMALL = Case(64, 1, 2, 2, 64, 300, episodes=2, turns=1, prompt=8, action=4, observation=4)


def child(case: Case) -> None:
    """Prints the resident memory before the case and the peak after it, in bytes."""
    take_steps(SMALL, 1)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    take_steps(case, 2)
    print(json.dumps({"before": before, "peak": resident("VmHWM")}))


def measure(case: Case) -> tuple[int, int]:
    """Measured bytes of the case, and those of the process before it."""
    command = [sys.executable, __file__, "--child", json.dumps(dataclasses.asdict(case))]
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
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
    print("| case | parameters | predicted MiB | measured MiB | predicted / measured | process MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        if args.case in (None, name):
            predicted, (measured, process) = predict(case).peak, measure(case)
            row = (
                name, f"{case.shape().num_parameters / 1e6:.1f} M", f"{predicted / MIB:.0f}", f"{measured / MIB:.0f}",
                f"{predicted / measured:.3f}", f"{process / MIB:.0f}",
            )  # fmt: skip
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
