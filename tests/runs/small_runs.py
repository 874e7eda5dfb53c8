"""The smallest training runs, for tests: a random model of one layer on a few generated games."""

import torch

from paw_fast.cli import main
from paw_fast.models import tiny

TEXTS = ["You arrive at cabinet 1. On the cabinet 1, you see a mug 2, and a plate 1.", "go to cabinet 12", "look"] * 20
SETTINGS = [
    "--preset", "tiny", "--env.num-train", "12", "--env.num-unseen", "4", "--env.max-steps", "3", "--eval-tasks", "2",
    "--eval-transitions", "4", "--rollout.groups", "2", "--rollout.group-size", "2", "--rollout.slots", "4",
    "--rollout.max-action-tokens", "6", "--algo.minibatches", "2", "--optim.schedule", "constant", "--eval-every", "1",
    "--optim.learning-rate", "1e-3", "--save-every", "1",
]  # fmt: skip


def make_model(folder):
    """Writes a randomly initialised model, so that no warm start is needed."""
    tokenizer = tiny.train_tokenizer(TEXTS, 400)
    made = tiny.build_model(len(tokenizer), hidden=32, layers=1, heads=2, kv_heads=1, ffn=48, seed=3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(model, run, *options):
    return main.run(["train", *SETTINGS, "--model", str(model), "--run-dir", str(run), *map(str, options)])


def resume(run, *options):
    return main.run(["train", "--resume", str(run), *map(str, options)])
