"""Trains with PaW in TRL, on a corridor in this file or on ALFWorld: python examples/trl_grpo.py [--env alfworld]

Without --model, a tiny model is built and taught on a few demonstrations to call the tool, so this runs on a CPU in
less than a minute.
"""

from __future__ import annotations

import argparse
import itertools
import os

import torch
import transformers
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from trl import GRPOConfig
from trl.chat_template_utils import qwen3_instruct_2507_chat_template

from paw_fast import envs
from paw_fast.integrations.trl import PawConfig, PawGRPOTrainer


class Corridor:
    """Rooms in a row, one with a lamp. It is won in room 0 with the lamp in hand."""

    QUESTION = "Bring the lamp to room 0."

    def reset(self, task: int = 0, **_) -> str:
        self.room, self.lamp, self.won = 0, 1 + task % 3, False
        return f" {self._look()}"

    def act(self, command: str) -> str:
        """Executes a command.

        Args:
            command: One of left, right and take lamp.

        Returns:
            What can be seen then.
        """
        if command == "take lamp" and self.lamp == self.room:
            self.lamp = None
        self.room = min(max(self.room + {"left": -1, "right": 1}.get(command, 0), 0), 3)
        self.won = self.won or (self.room == 0 and self.lamp is None)
        return self._look()

    def get_reward(self) -> float:
        return float(self.won)

    def _look(self) -> str:
        return f"You are in room {self.room}." + (" The lamp is here." if self.lamp == self.room else "")

    def _expert(self) -> list[str]:
        return ["right"] * self.lamp + ["take lamp"] + ["left"] * self.lamp


class AlfworldEnv:
    """ALFWorld by paw-fast's engine: no TextWorld and no data are needed."""

    QUESTION = "Do the household task."
    games = None

    def __init__(self) -> None:
        if AlfworldEnv.games is None:
            AlfworldEnv.games = envs.make("alfworld", size="small", num_train=24, num_unseen=12)
        self.env = AlfworldEnv.games.spawn()

    def reset(self, task: int = 0, **_) -> str:
        tasks = self.env.tasks("train")
        self.task = tasks[task % len(tasks)]
        self.seen, self.reward, self.done = self.env.reset(self.task), 0.0, False
        return f" {self.seen.text}"

    def act(self, command: str) -> str:
        """Executes a command.

        Args:
            command: A command such as go to desk 1, open drawer 2 or take mug 1 from desk 1.

        Returns:
            What happens.
        """
        if self.done:
            raise ValueError("the episode is over")  # TRL shows the model what a tool raises
        result = self.env.step(command)
        self.seen, self.done = result.observation, result.done
        self.reward += result.reward
        return result.observation.text

    def get_reward(self) -> float:
        return self.reward

    def _expert(self) -> list[str]:
        expert, commands = envs.make_expert("alfworld"), []
        seen = self.env.reset(self.task)
        expert.reset(seen)
        for _ in range(4):
            commands.append(expert.act(seen))
            result = self.env.step(commands[-1])
            seen = result.observation
            if result.done:
                break
        return commands


def demonstrate(make_env, tasks: int) -> list[list[dict]]:
    """Conversations in which the expert of an environment calls its tool."""
    found, env = [], make_env()
    for task in range(tasks):
        start = env.reset(task=task)
        commands = env._expert()
        env.reset(task=task)
        messages = [{"role": "user", "content": env.QUESTION + start}]
        for command in commands:
            call = {"type": "function", "function": {"name": "act", "arguments": {"command": command}}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "name": "act", "content": env.act(command)})
        found.append([*messages, {"role": "assistant", "content": "Done."}])
    return found


def build_tiny(make_env, tasks: int = 6, steps: int = 24, seed: int = 0):
    """A random Qwen3 with two layers and a tokenizer, taught for `steps` steps to call the tool."""
    tools = [make_env().act]
    tokenizer = Tokenizer(models.BPE())
    # A call is one token, and so is each line about the tools: what is left to learn is what the commands do.
    call, lines = r"<tool_call>\n\{[^\n]*\n</tool_call>", r'\{"[^\n]*|[^\n]*(?:function|# Tools)[^\n]*'
    pieces = Regex(rf"{call}|{lines}|</?tool_response>| ?\w+|\s+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2], padding_side="left",
        chat_template=qwen3_instruct_2507_chat_template,
    )  # fmt: skip
    demonstrations = demonstrate(make_env, tasks)
    texts = [tokenizer.apply_chat_template(one, tools=tools, tokenize=False) for one in demonstrations]
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.backend_tokenizer.train_from_iterator(texts, trainer)
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, max_position_embeddings=2048, tie_word_embeddings=True,
        initializer_range=0.05, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    opening = torch.tensor(tokenizer.encode("<|im_start|>assistant\n"))
    starts = (batch["input_ids"].unfold(1, len(opening), 1) == opening).all(-1)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, start in starts.nonzero().tolist():  # the turns of the assistant, without the answers of the tool
        start += len(opening)
        end = start + batch["input_ids"][row, start:].tolist().index(tokenizer.eos_token_id) + 1
        labels[row, start:end] = batch["input_ids"][row, start:end]
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, tokenizer


def make_trainer(
    env: str = "corridor", model: str | None = None, paw: PawConfig | None = None, steps: int = 3, **settings
) -> PawGRPOTrainer:
    """The trainer of this example; `settings` are those of GRPOConfig."""
    make_env = {"corridor": Corridor, "alfworld": AlfworldEnv}[env]
    policy, tokenizer = build_tiny(make_env) if model is None else (model, None)
    settings = {
        "output_dir": "runs/trl", "max_steps": steps, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 256, "max_tool_calling_iterations": 6, "learning_rate": 1e-4, "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", **settings,
    }  # fmt: skip
    if not torch.cuda.is_available():
        settings = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, **settings}
    tasks = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": make_env.QUESTION}], "task": task} for task in range(64)]
    )
    return PawGRPOTrainer(
        policy, args=GRPOConfig(**settings), train_dataset=tasks, processing_class=tokenizer,
        environment_factory=make_env, paw=paw,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", choices=["corridor", "alfworld"], default="corridor")
    parser.add_argument(
        "--model", help="a model of transformers whose chat template can call tools, as Qwen/Qwen3-0.6B"
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--no-paw", action="store_true", help="without the world-model loss: TRL's GRPO alone")
    args = parser.parse_args()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer = make_trainer(args.env, args.model, PawConfig(enabled=not args.no_paw), args.steps)
    trainer.train()
    for step, row in enumerate(itertools.islice(trainer.state.log_history, args.steps), 1):
        shown = {key: row[key] for key in ("loss", "reward", "tools/call_frequency") if key in row}
        shown |= {key: value for key, value in row.items() if key.startswith("wm/")}
        print(f"step {step}: " + ", ".join(f"{key} {float(value):.4f}" for key, value in shown.items()))


if __name__ == "__main__":
    main()
