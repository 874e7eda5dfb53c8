"""A small training loop for the tests of checkpoints."""

import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paw_fast.runs.checkpoint import save_checkpoint


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        attention_dropout=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<unk>", "<eos>", "go", "to", "shelf", "1"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


class Run:
    """A training loop that draws from every global random generator."""

    def __init__(self, model: torch.nn.Module):
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10)

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            ids = torch.randint(0, 40, (2, 6)) + random.randrange(2) * 0 + int(np.random.randint(1))
            ids[0, 0] = random.randrange(40)
            ids[1, 0] = int(np.random.randint(40))
            loss = self.model(input_ids=ids, labels=ids).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def save(self, run_dir: Path, step: int, **extra: object) -> Path:
        return save_checkpoint(
            run_dir, step, model=self.model, tokenizer=tiny_tokenizer(), optimizer=self.optimizer,
            scheduler=self.scheduler, extra=extra,
        )  # fmt: skip
