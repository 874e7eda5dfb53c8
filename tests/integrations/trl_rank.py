"""One of several processes of test_trl_processes.py: generates, computes a loss and its gradient, and saves all of it.

Arguments: folder of the model, folder of the example, folder for the results.
"""

import os
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    model, examples, folder = sys.argv[1:]
    sys.path.insert(0, examples)
    import trl_grpo
    from datasets import Dataset
    from trl import GRPOConfig

    from paw_fast.integrations.trl import PawConfig, PawGRPOTrainer

    rank = int(os.environ["RANK"])

    class Scored(trl_grpo.Corridor):
        def get_reward(self):
            return 0.5 * rank  # another weight of the world model for each group

    args = GRPOConfig(
        output_dir=folder, per_device_train_batch_size=4, num_generations=4, max_completion_length=160,
        max_tool_calling_iterations=4, report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        ddp_backend="gloo",
    )  # fmt: skip
    question = {"prompt": [{"role": "user", "content": trl_grpo.Corridor.QUESTION}]}
    rows = [{**question, "task": rank}] * 4
    trainer = PawGRPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), environment_factory=Scored,
        paw=PawConfig(alpha=0.5, deduplicate=True),
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions(rows)
    inputs["advantages"] = torch.randn(4)
    wrapped = torch.nn.parallel.DistributedDataParallel(trainer.model)  # reduces gradients for as long as it exists
    loss = trainer._compute_loss(wrapped, inputs)
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
    saved = {"inputs": inputs, "gradients": gradients, "loss": loss.detach(), "text": trainer._observation_text,
             "returns": trainer._returns, "wm": trainer._metrics["train"]["wm/loss"]}  # fmt: skip
    torch.save(saved, Path(folder) / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
