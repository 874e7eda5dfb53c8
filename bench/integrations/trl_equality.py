"""Prints how far the loss of PawGRPOTrainer with PaW off is from that of TRL's GRPOTrainer, for each loss type.

One batch of the example's corridor, float32, old log-probs moved by 0.3 nats: python bench/integrations/trl_equality.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import trl_grpo
from trl import GRPOTrainer

from paw_fast.integrations.trl import PawConfig

LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")


def evaluate(trainer: Any, inputs: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient by parameter."""
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours = trl_grpo.make_trainer(paw=PawConfig(enabled=False), output_dir=folder)
        model, tokenizer = trl_grpo.build_tiny(trl_grpo.Corridor)
        theirs = GRPOTrainer(
            model, args=ours.args, train_dataset=ours.train_dataset, processing_class=tokenizer,
            environment_factory=trl_grpo.Corridor,
        )  # fmt: skip
        for trainer in (ours, theirs):
            trainer.model.train()
            trainer.current_gradient_accumulation_steps = 1
        torch.manual_seed(0)
        inputs = theirs._generate_and_score_completions([dict(ours.train_dataset[i]) for i in (0,) * 4 + (2,) * 4])
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            old = theirs._get_per_token_logps_and_entropies(theirs.model, ids, mask, inputs["tool_mask"].shape[1])[0]
        inputs["old_per_token_logps"] = old + 0.3 * torch.randn_like(old) * inputs["tool_mask"]
        inputs["advantages"] = torch.randn(8)
        print("| loss_type | loss of TRL | difference | gradient: largest of TRL | largest difference |")
        print("| --- | --- | --- | --- | --- |")
        for name in LOSS_TYPES:
            ours.loss_type = theirs.loss_type = name
            (loss, gradients), (expected, wanted) = evaluate(ours, inputs), evaluate(theirs, inputs)
            largest = max(float(g.abs().max()) for g in wanted.values())
            worst = max(float((gradients[key] - g).abs().max()) for key, g in wanted.items())
            print(f"| `{name}` | {expected:.6f} | {abs(loss - expected):.1e} | {largest:.3g} | {worst:.1e} |")


if __name__ == "__main__":
    main()
