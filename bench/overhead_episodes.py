"""Episodes of realistic lengths for bench/overhead.py: the environments' own texts, prompts and limits of a recipe.

    searcher plays ──> its commands ──> agent loop of the recipe (prompts, history, cuts) ──> trajectories

The agent loop plays the searcher's commands once more through an engine that writes a thought before each of them, so
that history, admissible commands and the cut of long observations are those of a run. The thought's tokens are random
words; how many they are is an assumption of the caller. Tokens are those of a BPE with Qwen2.5's rules for cutting
text (words, single digits), trained on the texts: within 12 % of Qwen2.5's own counts on all three environments.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from paw_fast import envs
from paw_fast.config import TrainConfig, WarmStartConfig
from paw_fast.envs.base import Env
from paw_fast.rollout.agent_loop import AgentLoop, AgentSettings
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.engines.base import ActionRequest, Completion
from paw_fast.rollout.prompts import PromptTemplate, write_action
from paw_fast.sft.warm_start import Demonstration, demonstrate
from paw_fast.types import EpisodeId, EpisodeRequest, Task, Trajectory

VOCAB = 4096
CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def settings_of(name: str, data: Path) -> dict:
    """Where an environment of the bench takes its data from."""
    if name == "webshop":
        return {"data": data / "webshop"}
    if name == "search":
        return {
            "train": [str(data / "qa" / "hotpotqa_train.json")],
            "corpus": data / "qa" / "hotpotqa_train_corpus.json",
        }
    return {"size": "full", "num_train": 64, "num_unseen": 8}


def play(name: str, data: Path, count: int, config: TrainConfig) -> tuple[Env, list[tuple[Task, Demonstration]]]:
    """The environment and `count` won episodes of its searcher, each with its task."""
    env = envs.make(name, max_steps=config.env.max_steps, **settings_of(name, data))
    quiet = WarmStartConfig(noop_prob=0.0, noop_share=0.0, mistake_prob=0.0)
    kept: list[tuple[Task, Demonstration]] = []
    for task in env.tasks("train"):
        kept += [(task, demo) for demo in demonstrate(env, envs.make_expert(name), [task], quiet)]
        if len(kept) == count:
            return env, kept
    sys.exit(f"{name}: the searcher won {len(kept)} episodes, {count} are needed")


def train_tokenizer(texts: Iterable[str]) -> transformers.PreTrainedTokenizerFast:
    """A BPE of at most `VOCAB` tokens that cuts text where Qwen2.5's does, with its chat format."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


class ScriptedEngine:
    """Writes a thought and the episode's next command. Episodes are numbered as they start."""

    policy_version = 0

    def __init__(self, chat: ChatFormat, scripts: Sequence[Sequence[str]], style: str, thought: tuple[int, int]):
        self.chat, self.style, self.thought = chat, style, thought
        self.scripts = [iter(script) for script in scripts]
        self.rng = np.random.default_rng(0)
        vocab = chat.tokenizer.get_vocab()
        self.words = sorted(i for piece, i in vocab.items() if piece.lstrip("Ġ").isalpha() and piece.isascii())
        self.asked: list[ActionRequest] = []

    def submit(self, request: ActionRequest) -> None:
        self.asked.append(request)

    def step(self) -> list[Completion]:
        asked, self.asked = self.asked, []
        return [self._answer(request) for request in asked]

    def _answer(self, request: ActionRequest) -> Completion:
        text = write_action(next(self.scripts[request.episode]), self.style)
        words = self.rng.choice(self.words, int(self.rng.integers(*self.thought)))
        ids = self.chat.encode("<think>") + words.tolist() + self.chat.encode(text.removeprefix("<think>"))
        return Completion(request.episode, tuple(ids), (-1.0,) * len(ids), True, (0,) * len(ids))

    def release(self, episode: int) -> None:
        pass

    def close(self) -> None:
        pass

    def update_weights(self, policy_version: int) -> None:
        pass


def episodes_of(
    name: str, data: Path, groups: int, group_size: int, config: TrainConfig, thought: tuple[int, int]
) -> tuple[list[Trajectory], transformers.PreTrainedTokenizerFast]:
    """Trajectories of a step, group after group, and their tokenizer. In each group every other episode is given the
    return of a lost one, so that no advantage and no lambda is zero."""
    env, played = play(name, data, groups * group_size, config)
    template = PromptTemplate.load(config.env.template, name)
    texts = [template.window(first, first.task, [], 0) for _, (first, _) in played]
    texts += [after.text for _, (_, turns) in played for _, after, _ in turns]
    tokenizer = train_tokenizer(texts)
    chat = ChatFormat(tokenizer)
    scripts = [[command for command, _, _ in turns] for _, (_, turns) in played]
    engine = ScriptedEngine(chat, scripts, template.style, thought)
    settings = AgentSettings(
        layout=config.layout, history=config.env.history, max_steps=config.env.max_steps,
        max_action_tokens=config.rollout.max_action_tokens, max_sequence_tokens=10**6, max_episode_s=None,
        max_episode_tokens=None, temperature=config.rollout.temperature, success_reward=config.algo.success_reward,
        invalid_penalty=config.algo.invalid_penalty,
        max_observation_chars=config.env.max_observation_chars,
        max_observation_tokens=config.env.max_observation_tokens,
    )  # fmt: skip
    loop = AgentLoop(engine, [env.spawn() for _ in played], chat, template, settings)
    # An episode starts when a slot is free, in the order of the plan: its number is that of its script.
    ids = [EpisodeId(0, *divmod(i, group_size)) for i in range(len(played))]
    plan = [EpisodeRequest(one, task, (0, i)) for i, (one, (task, _)) in enumerate(zip(ids, played, strict=True))]
    ended = sorted(loop.play(plan), key=lambda t: t.episode_id)
    env.close()
    bad = sum(not x.valid for t in ended for x in t.transitions)
    if bad:
        sys.exit(f"{name}: {bad} actions of the searcher were not understood")
    alternate = itertools.cycle((config.algo.success_reward, 0.0))
    return [_with_return(t, reward) for t, reward in zip(ended, alternate, strict=False)], tokenizer


def _with_return(t: Trajectory, reward: float) -> Trajectory:
    last = dataclasses.replace(t.transitions[-1], reward=reward)
    turns = (*(dataclasses.replace(x, reward=0.0) for x in t.transitions[:-1]), last)
    return dataclasses.replace(t, transitions=turns, episode_return=reward, success_return=reward)


def mean_lengths(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over the transitions, in tokens, and the episodes' mean number of turns."""
    turns = [x for t in trajectories for x in t.transitions]
    return {
        "turns": len(turns) / len(trajectories),
        "prompt": statistics.mean(len(x.prompt_ids) for x in turns),
        "action": statistics.mean(len(x.action_ids) for x in turns),
        "observation": statistics.mean(sum(x.observation_mask) for x in turns),
    }
