"""Imitation of the searcher's episodes: gives the `tiny` model the commands' form and a weak policy to improve.

The episodes use only what was shown in them, because an oracle's moves cannot be learned from observations.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paw_fast import envs
from paw_fast.config import TrainConfig, WarmStartConfig
from paw_fast.errors import UserError
from paw_fast.kernels import WORLD_MODEL, LossSettings
from paw_fast.learner import packing
from paw_fast.learner.forward_backward import backward, rows_per_chunk
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.models.policy import Policy, resolve_device
from paw_fast.rollout.agent_loop import first_prompt
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.prompts import PromptTemplate, shown, write_action
from paw_fast.rollout.text_encoding import TemplateText
from paw_fast.runs import console, stop_signals
from paw_fast.runs.atomic_files import user_errors, write_text
from paw_fast.types import (
    EVALUATION,
    Env,
    EpisodeId,
    Observation,
    Task,
    TokenSequence,
    Trajectory,
    Transition,
)

Demonstration = tuple[Observation, list[tuple[str, Observation, bool]]]
"""The first observation, then (command, next observation, whether to imitate the command) for every turn."""

HESITATION = "look"


def demonstrate(
    env: Env, expert, tasks: Iterable[Task], settings: WarmStartConfig, seed: int = 0,
    done: Callable[[], object] = lambda: None, clean_expert: Any = None,
) -> list[Demonstration]:  # fmt: skip
    """Episodes of `expert` that win; the others teach nothing and are left out, but for those of a hasty expert
    (`expert.hasty`), whose habit is to be imitated.

    Before a command of the expert there may come, with the chances of `settings`, a needless `look` (a bad habit
    that is imitated too, and that reinforcement learning can break) and a slip: a command that does nothing here,
    not imitated, after which the expert's command shows how to go on. An expert's own `noop_prob` (None: it has
    none) and `is_slip(command, observation)` stand for another habit and other slips. `calm` plays instead of a hasty
    expert before the last `early_answer_share` of the tasks.
    """
    rng = random.Random(seed)
    habit: str | None = getattr(expert, "noop_prob", HESITATION)
    is_slip = getattr(expert, "is_slip", lambda command, seen: command not in seen.admissible)
    spoken: list[str] = [habit or ""]
    kept = []
    tasks = list(tasks)
    hesitant_from = round(len(tasks) * (1 - settings.noop_share))
    hasty_from = round(len(tasks) * (1 - settings.early_answer_share)) if clean_expert else 0
    hasty = expert
    for number, task in enumerate(tasks):
        expert = clean_expert if number < hasty_from else hasty
        first = observation = env.reset(task)
        expert.reset(observation)
        turns: list[tuple[str, Observation, bool]] = []
        over = won = False
        while not over:
            planned = expert.act(observation)
            queue = [(planned, True)]
            if habit is not None and number >= hesitant_from and rng.random() < settings.noop_prob:
                queue.insert(0, (habit, True))
            slip = rng.choice(spoken)
            if rng.random() < settings.mistake_prob and is_slip(slip, observation):
                queue.insert(0, (slip, False))
            for command, imitate_it in queue:
                step = env.step(command)
                turns.append((command, step.observation, imitate_it))
                over, won = step.done, bool(step.info.get("won"))
                if over:
                    break
            observation = step.observation
            spoken.append(planned)
        if won or getattr(expert, "hasty", False):
            kept.append((first, turns))
        del spoken[:-500]
        done()
    return kept


def as_trajectory(demo: Demonstration, chat: ChatFormat, template: PromptTemplate, config: TrainConfig) -> Trajectory:
    """A demonstration as the agent loop would have recorded it, in the layout of `config`, as far as it fits
    --rollout.max-sequence-tokens."""
    template, room = template.guarded(chat.guard), config.rollout.max_sequence_tokens
    limits = config.env.max_observation_chars, config.env.max_observation_tokens
    first = chat.shown(demo[0], *limits)[0]
    turns = [(c, chat.shown(after, *limits)[0], learn) for c, after, learn in demo[1]]
    trajectory_layout = config.layout == "trajectory"
    instruction = str(first.info.get("task", ""))
    observation, history, transitions = first, [], []
    prompt = first_prompt(first, chat, template, config.layout)
    for command, after, imitated in turns:
        written = TemplateText(write_action(chat.guard(command), template.style, chat.thought_opened))
        action = [*chat.encode(written), chat.turn_end]
        head, tail = template.split_next(after) if trajectory_layout else ("", "")
        ids, mask = chat.follow(action, head, after.text, tail)
        kept = room - len(prompt) - len(action)
        if kept >= 0:
            transitions.append(
                Transition(
                    tuple(prompt), tuple(action), (0.0,) * len(action), tuple(ids[:kept]), tuple(mask[:kept]),
                    command, after.text, "", 0.0, imitated,
                )
            )  # fmt: skip
        elif trajectory_layout:
            break
        history.append({"observation": observation.text, "command": command})
        observation = after
        if trajectory_layout:
            prompt = prompt + action + ids
        else:
            recent = history[-config.env.history :] if config.env.history else []
            prompt = chat.first(template.window(after, instruction, recent, len(history)))
    return Trajectory(Task("demonstration"), EpisodeId(EVALUATION, 0, 0), tuple(transitions), 0.0, 0.0, True)


def _num_imitated(sequence: TokenSequence, imitated: Sequence[bool]) -> int:
    return sum(s.action[1] - s.action[0] for s in sequence.spans if imitated[s.transition])


def _tables(
    sequences: Sequence[TokenSequence], imitated: Sequence[bool], action_weight: float, observation_weight: float
):
    for sequence in sequences:
        shown = dataclasses.replace(sequence, spans=tuple(s for s in sequence.spans if imitated[s.transition]))
        actions = packing.action_rows(shown)
        actions.kinds[:] = WORLD_MODEL  # with `ce` a world-model row is a plain language-model row
        actions.weights[:] = action_weight
        weights = [observation_weight] * len(sequence.spans)
        yield packing.join_rows(actions, packing.observation_rows(sequence, weights))


def imitate(
    policy: Policy, sequences: Sequence[TokenSequence], imitated: Sequence[bool], config: TrainConfig,
    progress: Callable[[int, float], None],
) -> float:  # fmt: skip
    """Trains on the sequences with cross-entropy; returns the mean action loss of the last tenth of the steps that
    had actions to imitate, NaN where none had.

    `imitated` says of every transition whether its action is learned.
    `progress(sequences in this step, loss)` is called after each optimizer step.
    """
    settings = config.warm_start
    rng = np.random.default_rng([config.seed, 1])
    batches: list[list[int]] = []
    # The episodes with a bad habit come last, and once: it is quickly learned, and what it wastes is not.
    early_answer_share = (
        settings.early_answer_share if settings.early_answer_prob and settings.early_answer_share < 1 else 0.0
    )
    split = round(len(sequences) * (1 - max(settings.noop_share, early_answer_share)))
    parts = [rng.permutation(split) for _ in range(settings.epochs)]
    parts.append(split + rng.permutation(len(sequences) - split))
    for order in parts:
        batch: list[int] = []
        tokens = 0
        for i in order:
            batch.append(int(i))
            tokens += len(sequences[i].ids)
            if tokens >= settings.batch_tokens:
                batches.append(batch)
                batch, tokens = [], 0
        if batch:
            batches.append(batch)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = max(1, len(batches) // 10)
    ce = LossSettings(wm_loss="ce", clip_low=config.algo.clip_low, clip_high=config.algo.clip_high)
    chunk = rows_per_chunk(policy, config.logits_budget_mb << 20)
    losses: list[float] = []
    for number, members in enumerate(batches):
        rise, fall = (number + 1) / warmup, (len(batches) - number) / max(1, len(batches) - warmup)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(rise, fall, 1.0)
        chosen = [sequences[i] for i in members]
        actions = [_num_imitated(q, imitated) for q in chosen]
        num_actions = sum(actions)
        num_observed = sum(len(s.observation) for q in chosen for s in q.spans)
        observation_weight = settings.observation_weight / max(1, num_observed)
        tables = list(_tables(chosen, imitated, 1.0 / max(1, num_actions), observation_weight))
        # In the `window` layout a sequence may have nothing to learn: no imitated action, and no observation after it.
        live = [i for i, t in enumerate(tables) if len(t.positions)]
        loss = 0.0
        for micro in packing.plan_micro_batches([packing.input_length(tables[i]) for i in live], config.token_budget):
            packed = packing.pack(chosen, tables, [live[i] for i in micro], policy.device)
            result = backward(policy, packed, ce, chunk)
            starts = np.cumsum([0, *packed.row_counts])  # of each member's rows, of which the actions' come first
            for i, start in zip(packed.members, starts[:-1], strict=True):
                loss += float(result.losses[start : start + actions[i]].sum())
        norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise UserError(
                f"the imitation of the warm start diverged (the gradient of its step {number + 1} is {float(norm)}): "
                f"lower --warm-start.learning-rate, which is {settings.learning_rate:g}"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if num_actions:
            losses.append(loss)
        progress(len(members), loss)
    return float(np.mean(losses[-max(1, len(losses) // 10) :])) if losses else math.nan


def warm_start(env: Env, config: TrainConfig, folder: Path) -> None:
    """Builds the `tiny` model, trains it on the searcher's episodes and saves it in `folder`, Hugging Face format.

    A file `done` is written last. Raises `stopping.Interrupted` between two of its steps where a stop was asked for.
    """
    settings = config.warm_start
    tasks = env.tasks("train")[: settings.episodes]
    with console.progress("demonstrations", len(tasks)) as advance:
        expert = envs.make_expert(
            env.name,
            **(
                {"early_answer_prob": settings.early_answer_prob, "seed": config.seed}
                if settings.early_answer_prob
                else {}
            ),
        )
        clean_expert = envs.make_expert(env.name) if settings.early_answer_prob else None
        demos = demonstrate(env, expert, tasks, settings, config.seed, advance, clean_expert)
    if not demos:
        raise UserError(
            f"the expert won none of {len(tasks)} episodes in {config.env.max_steps} steps: nothing to imitate"
        )
    stop_signals.check()
    template = PromptTemplate.load(config.env.template, config.env.name)
    tokenizer = tiny.train_tokenizer(
        _texts(demos[:1000], template), settings.vocab_size, getattr(expert, "names", ""),
        _texts(demos[1000:], template),
    )  # fmt: skip
    model = tiny.build_model(
        len(tokenizer), seed=config.seed, layers=settings.layers, copying=settings.copying,
        max_positions=config.rollout.max_sequence_tokens,
    )  # fmt: skip
    policy = Policy(torch.nn.Module.to(model, resolve_device(config.model.device)), tokenizer)
    chat = ChatFormat(tokenizer, date=config.rollout.chat_date)
    trajectories = []
    for demo in demos:
        stop_signals.check()
        trajectories.append(as_trajectory(demo, chat, template, config))
    sequences = build_sequences(trajectories, config.layout)
    if not sequences:
        raise UserError(
            f"no turn of {len(demos)} demonstrations fits --rollout.max-sequence-tokens "
            f"{config.rollout.max_sequence_tokens}: raise it"
        )
    imitated = [t.valid for trajectory in trajectories for t in trajectory.transitions]
    with console.progress(
        f"imitation ({policy.num_parameters() / 1e6:.1f} M parameters)", settings.epochs * len(demos)
    ) as advance:

        def show(done: int, loss: float) -> None:
            advance(done)

        loss = imitate(policy, sequences, imitated, config, show)
    with user_errors("save the warm-started model", folder):
        policy.model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        shown_ones = [
            name for first, turns in demos for _, seen, _ in turns for *_, name in seen.info.get("passages", ())
        ]
        write_text(folder / "passages.json", json.dumps(list(dict.fromkeys(shown_ones))) + "\n")
        write_text(folder / "done", f"{len(demos)} episodes of {len(tasks)}, last action loss {loss:.4f}\n")


def read_passages(folder: Path) -> list[str]:
    """The ids of the passages that the demonstrations of a warm start have shown; [] where there is none."""
    try:
        return json.loads((folder / "passages.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []


def _texts(demos: Sequence[Demonstration], template: PromptTemplate) -> Iterable[str]:
    for first, turns in demos:
        yield shown(first)[0].text
        yield str(first.info.get("task", ""))
        for command, observation, _ in turns:
            yield write_action(command, template.style)
            yield shown(observation)[0].text
