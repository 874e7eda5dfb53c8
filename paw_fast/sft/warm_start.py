"""Trains the `tiny` model on expert demonstrations: it learns the commands' form and a weak policy to improve.

The expert knows no more than its episodes have shown: what it does can be learned from the observations.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from paw_fast import envs
from paw_fast.config import TrainConfig, WarmStartConfig
from paw_fast.envs.base import Env, Expert
from paw_fast.errors import UserError
from paw_fast.kernels import WORLD_MODEL, LossSettings
from paw_fast.learner import packing
from paw_fast.learner.forward_backward import backward, rows_per_chunk
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.models.policy import Policy, resolve_device
from paw_fast.rollout.agent_loop import first_prompt
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.rollout.episode_retries import retried
from paw_fast.rollout.prompts import PromptTemplate, policy_view, write_action
from paw_fast.rollout.text_encoding import TemplateText
from paw_fast.runs import console, progress, stop_signals
from paw_fast.runs.atomic_files import build_folder, sync_file, user_errors, write_text
from paw_fast.runs.cache_lock import cache_lock
from paw_fast.runs.checkpoint import save_model
from paw_fast.sft import warm_start_cache as cache
from paw_fast.sft.imitation_checkpoint import ImitationCheckpoint
from paw_fast.types import EVALUATION, EpisodeId, Observation, Task, TokenSequence, Trajectory, Transition

Demonstration = tuple[Observation, list[tuple[str, Observation, bool]]]
"""The first observation, then (command, next observation, whether to imitate the command) for every turn."""

_Turns = tuple[Observation, list[tuple[str, Observation, bool]], bool]
"""A demonstration, and whether it was won."""


def demonstrate(
    env: Env, expert: Expert, tasks: Iterable[Task], settings: WarmStartConfig, seed: int = 0,
    done: Callable[[], object] = lambda: None, careful_expert: Expert | None = None,
) -> list[Demonstration]:  # fmt: skip
    """Episodes of `expert` that win, and those in which it answered early; the others teach nothing and are left out.

    Before a command of the expert there may come, with the chances of `settings`, its no-op command (a habit that is
    imitated too, and that reinforcement learning can break) and a mistake: an earlier command that is useless here,
    not imitated, after which the expert's command shows how to go on. `careful_expert` acts in its place before the
    last `expert.early_answer_share` of the tasks.
    """
    rng = random.Random(seed)
    noop = expert.noop_command
    used: list[str] = [noop or ""]
    kept = []
    tasks = list(tasks)
    noops_from = round(len(tasks) * (1 - settings.noop_share))
    early_from = 0 if careful_expert is None else round(len(tasks) * (1 - expert.early_answer_share))
    last_expert = expert
    for number, task in enumerate(tasks):
        expert = careful_expert if careful_expert is not None and number < early_from else last_expert

        def play(expert: Expert = expert, task: Task = task, noops: bool = number >= noops_from) -> _Turns:
            first = observation = env.reset(task)
            expert.reset(observation)
            turns: list[tuple[str, Observation, bool]] = []
            over = won = False
            while not over:
                planned = expert.act(observation)
                queue = [(planned, True)]
                if noop is not None and noops and rng.random() < settings.noop_prob:
                    queue.insert(0, (noop, True))
                mistake = rng.choice(used)
                if rng.random() < settings.mistake_prob and last_expert.is_useless(mistake, observation):
                    queue.insert(0, (mistake, False))
                for command, imitate_it in queue:
                    step = env.step(command)
                    turns.append((command, step.observation, imitate_it))
                    over, won = step.done, step.won
                    if over:
                        break
                observation = step.observation
                used.append(planned)
            return first, turns, won

        first, turns, won = retried(play)
        if won or expert.answered_early:
            kept.append((first, turns))
        del used[:-500]
        done()
    return kept


def as_trajectory(demo: Demonstration, chat: ChatFormat, template: PromptTemplate, config: TrainConfig) -> Trajectory:
    """A demonstration as the agent loop would have recorded it, in the layout of `config`, as far as it fits
    --rollout.max-sequence-tokens."""
    template, room = template.with_escape(chat.escape), config.rollout.max_sequence_tokens
    limits = config.env.max_observation_chars, config.env.max_observation_tokens
    first = chat.policy_view(demo[0], *limits)[0]
    turns = [(c, chat.policy_view(after, *limits)[0], learn) for c, after, learn in demo[1]]
    trajectory_layout = config.layout == "trajectory"
    instruction = first.task
    observation, history, transitions = first, [], []
    prompt = first_prompt(first, chat, template, config.layout)
    for command, after, imitated in turns:
        written = TemplateText(write_action(chat.escape(command), template.style, chat.thought_opened))
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


def _split(num_sequences: int, settings: WarmStartConfig, early_answer_share: float) -> int:
    """Number of the sequences that are repeated in each epoch.

    The episodes with needless commands or early answers come last, and once: habits are learned quickly.
    """
    share = max(settings.noop_share, early_answer_share if early_answer_share < 1 else 0.0)
    return round(num_sequences * (1 - share))


def num_imitations(num_sequences: int, settings: WarmStartConfig, early_answer_share: float) -> int:
    """How many sequences `imitate` trains on, repetitions counted.

    >>> num_imitations(10, WarmStartConfig(epochs=3, noop_share=0.2), 0.0)  # 8 three times, 2 once
    26
    """
    split = _split(num_sequences, settings, early_answer_share)
    return settings.epochs * split + num_sequences - split


def _plan_batches(
    sequences: Sequence[TokenSequence], settings: WarmStartConfig, early_answer_share: float
) -> list[list[int]]:
    """The sequences of each optimizer step, by number."""
    rng = np.random.default_rng([settings.seed, 1])
    batches: list[list[int]] = []
    split = _split(len(sequences), settings, early_answer_share)
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
    return batches


def imitate(
    policy: Policy, sequences: Sequence[TokenSequence], imitated: Sequence[bool], config: TrainConfig,
    progress: Callable[[int, float], None], early_answer_share: float = 0.0,
    checkpoint: ImitationCheckpoint | None = None,
) -> float:  # fmt: skip
    """Trains on the sequences with cross-entropy; returns the mean action loss of the last tenth of the steps that
    had actions to imitate, NaN where none had.

    `imitated` says of every transition whether its action is learned. `early_answer_share`: of the last sequences.
    `progress(sequences in this step, loss)` is called after each optimizer step; what it raises stops the imitation,
    with `stop_signals.Interrupted` after saving to `checkpoint`. The steps that `checkpoint` holds are not repeated.
    """
    settings = config.warm_start
    batches = _plan_batches(sequences, settings, early_answer_share)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = max(1, len(batches) // 10)
    ce = LossSettings(wm_loss="ce", clip_low=config.algo.clip_low, clip_high=config.algo.clip_high)
    chunk = rows_per_chunk(policy, config.logits_budget_mb << 20)
    steps, losses = checkpoint.restore(policy.model, optimizer) if checkpoint else (0, [])
    if steps:
        progress(sum(map(len, batches[:steps])), losses[-1] if losses else 0.0)
    for number, members in list(enumerate(batches))[steps:]:
        rise, fall = (number + 1) / warmup, (len(batches) - number) / max(1, len(batches) - warmup)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(rise, fall, 1.0)
        loss = _imitation_loss(policy, [sequences[i] for i in members], imitated, config, ce, chunk)
        norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise UserError(
                f"the imitation of the warm start diverged (the gradient of its step {number + 1} is {float(norm)}): "
                f"lower --warm-start.learning-rate, which is {settings.learning_rate:g}"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if loss is not None:
            losses.append(loss)
        try:
            progress(len(members), loss or 0.0)
        except stop_signals.Interrupted:
            if checkpoint:
                checkpoint.save(number + 1, losses, policy.model, optimizer)
            raise
        if checkpoint and checkpoint.is_due():
            checkpoint.save(number + 1, losses, policy.model, optimizer)
    return float(np.mean(losses[-max(1, len(losses) // 10) :])) if losses else math.nan


def _imitation_loss(
    policy: Policy, chosen: list[TokenSequence], imitated: Sequence[bool], config: TrainConfig, ce: LossSettings,
    chunk: int,
) -> float | None:  # fmt: skip
    """Adds the gradient of an optimizer step's sequences; returns their mean action loss, None where none has an action
    to imitate."""
    actions = [_num_imitated(q, imitated) for q in chosen]
    num_actions = sum(actions)
    num_observed = sum(len(s.observation) for q in chosen for s in q.spans)
    observation_weight = config.warm_start.observation_weight / max(1, num_observed)
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
    return loss if num_actions else None


def warm_start(env: Env, config: TrainConfig, folder: Path) -> None:
    """Builds the `tiny` model, trains it on expert demonstrations and saves it in `folder`, in Hugging Face format.

    It is taken from the cache where another run has built it (`--warm-start.cache`). `folder` is complete or not there;
    how far an interrupted imitation has come is kept beside it, and the next call goes on from there.

    Raises `UserError` for an environment without an expert, and `stop_signals.Interrupted` between two steps where a
    stop was asked for.
    """
    settings = config.warm_start
    expert = envs.make_expert(config.env, settings.seed)
    careful_expert = envs.make_expert(config.env, careful=True) if expert.early_answer_share else None
    tasks = env.tasks("train")[: settings.episodes]
    with progress.phase("demonstrations", len(tasks), "episodes") as advance:
        demos = demonstrate(env, expert, tasks, settings, settings.seed, advance, careful_expert)
    if not demos:
        raise UserError(
            f"the expert won none of {len(tasks)} episodes in {config.env.max_steps} steps: nothing to imitate"
        )
    stop_signals.check()
    decided_by = cache.settings_of(config, demos, len(tasks), expert)
    key = cache.key_of(decided_by)
    checkpoint = ImitationCheckpoint(folder.with_name("warm_start_progress.pt"), key)
    if not settings.cache:
        _build(demos, expert, len(tasks), config, folder, checkpoint)
    else:
        entry = cache.entry_of(key)
        with cache_lock(entry.with_name(f".{key}.lock"), "the same warm start"):
            if cache.take(entry, folder):
                console.say(f"warm start: from the cache, {entry}")
            else:
                _build(demos, expert, len(tasks), config, folder, checkpoint)
                cache.put(entry, folder, decided_by)
    checkpoint.remove()


def _build(
    demos: Sequence[Demonstration], expert: Expert, num_tasks: int, config: TrainConfig, folder: Path,
    checkpoint: ImitationCheckpoint,
) -> None:  # fmt: skip
    """Builds the model, imitates the demonstrations and saves it in `folder`."""
    settings = config.warm_start
    template = PromptTemplate.load(config.env.template, config.env.name)
    tokenizer = tiny.train_tokenizer(
        _texts(demos[:1000], template), settings.vocab_size, expert.token_pattern,
        _texts(demos[1000:], template),
    )  # fmt: skip
    model = tiny.build_model(
        len(tokenizer), seed=settings.seed, layers=settings.layers, copying=settings.copying,
        max_positions=config.rollout.max_sequence_tokens,
    )  # fmt: skip
    policy = Policy(torch.nn.Module.to(model, resolve_device(config.model.device)), tokenizer)
    chat = ChatFormat(tokenizer, date=config.rollout.chat_date)  # the template of the tiny model has no date
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
    name = f"imitation ({policy.num_parameters() / 1e6:.1f} M parameters)"
    total = num_imitations(len(sequences), settings, expert.early_answer_share)
    with progress.phase("imitation", total, "sequences", name=name) as advance:

        def show(done: int, loss: float) -> None:
            advance(done, f"loss {loss:.3f}")

        loss = imitate(policy, sequences, imitated, config, show, expert.early_answer_share, checkpoint)

    def write(hidden: Path) -> None:
        save_model(hidden, policy.model, policy.tokenizer)
        shown_ones = [name for first, turns in demos for _, seen, _ in turns for *_, name in seen.passages]
        write_text(hidden / "passages.json", json.dumps(list(dict.fromkeys(shown_ones))) + "\n")
        write_text(hidden / "done", f"{len(demos)} episodes of {num_tasks}, last action loss {loss:.4f}\n")
        for path in hidden.iterdir():
            sync_file(path)

    with user_errors("save the warm-started model", folder):
        build_folder(folder, write, replace=True)


def read_passages(folder: Path) -> list[str]:
    """The ids of the passages that the demonstrations of a warm start have shown; [] where there is none."""
    try:
        return json.loads((folder / "passages.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []


def _texts(demos: Sequence[Demonstration], template: PromptTemplate) -> Iterable[str]:
    for first, turns in demos:
        yield policy_view(first)[0].text
        yield first.task
        for command, observation, _ in turns:
            yield write_action(command, template.style)
            yield policy_view(observation)[0].text
