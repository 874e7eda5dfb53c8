"""Measures what a policy expects of its environment, token by token, for the episodes page of a report.

    episodes -> sequences -> probabilities of the observation tokens, before training and now
                          -> entropies of the actions -> selected transitions
             -> returns   -> lambda of each group

B trajectories, M transitions, O observation tokens of a transition, A action tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paw_fast.algorithms.world_model import first_of_equals, group_lambdas, select_transitions
from paw_fast.config import TrainConfig
from paw_fast.evaluation.success import EVAL_SEED, eval_tasks
from paw_fast.learner import packing
from paw_fast.learner.forward_backward import compute_token_stats, predict, rows_per_chunk
from paw_fast.learner.packing import PackedBatch, RowTable
from paw_fast.learner.sequences import build_sequences
from paw_fast.models.policy import Policy
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.runs.episodes_page import EpisodeView, ObservedToken, TurnView
from paw_fast.types import EVALUATION, EpisodeId, EpisodeRequest, Task, TokenSequence, Trajectory

_DECODE_WINDOW = 12
"""Tokens that are decoded together, so that a token's text may depend on those before it."""


@dataclass(frozen=True)
class Expectation:
    """What one policy says of the transitions of some episodes. Produced by `measure_expectation`.

    probabilities  M arrays [O]: of the observation tokens, at temperature 1
    entropies      [M]: mean full-vocabulary entropy over the tokens of the action, at the training temperature, nats

    >>> Expectation([np.array([0.5])], np.array([0.1])).entropies
    array([0.1])
    """

    probabilities: list[np.ndarray]
    entropies: np.ndarray


def episode_requests(tasks: Sequence[Task], episodes: int, per_task: int, seed: int) -> list[EpisodeRequest]:
    """Returns `episodes` requests, `per_task` for each task, on the tasks on which the run is evaluated."""
    chosen = eval_tasks(tasks, -(-episodes // per_task))
    numbers = [number for number in range(episodes) if number // per_task < len(chosen)]
    return [
        EpisodeRequest(
            EpisodeId(EVALUATION, n // per_task, n % per_task), chosen[n // per_task], (seed, EVAL_SEED, n)
        )
        for n in numbers
    ]  # fmt: skip


def measure_expectation(policy: Policy, trajectories: Sequence[Trajectory], config: TrainConfig) -> Expectation:
    """Measures probabilities of observation tokens and entropies of actions, with the functions that training uses.

    Each observation is the one after its action also where the run predicts several (`paw.horizon`).
    """
    sequences = build_sequences(trajectories, config.layout)
    count = sum(len(sequence.spans) for sequence in sequences)
    chunk = rows_per_chunk(policy, config.logits_budget_mb << 20)
    probabilities = [np.zeros(0)] * count
    tables = [packing.observation_rows(sequence, [1.0] * len(sequence.spans)) for sequence in sequences]
    for batch in _batches(policy, sequences, tables, config.token_budget):
        flat = predict(policy, batch, chunk)[0].double().exp().numpy()
        for number, part in _by_transition(flat, batch, sequences, actions=False):
            probabilities[number] = part
    entropies = np.zeros(count)
    tables = [packing.action_rows(sequence) for sequence in sequences]
    for batch in _batches(policy, sequences, tables, config.token_budget):
        flat = compute_token_stats(policy, batch, config.rollout.temperature, chunk)[1].cpu().numpy()
        for number, part in _by_transition(flat, batch, sequences, actions=True):
            entropies[number] = float(part.mean())
    return Expectation(probabilities, entropies)


def _batches(
    policy: Policy, sequences: Sequence[TokenSequence], tables: Sequence[RowTable], token_budget: int
) -> Iterator[PackedBatch]:
    live = [number for number, table in enumerate(tables) if len(table.positions)]
    lengths = [packing.input_length(tables[number]) for number in live]
    for members in packing.plan_micro_batches(lengths, token_budget):
        yield packing.pack(sequences, tables, [live[i] for i in members], policy.device)


def _by_transition(
    flat: np.ndarray, batch: PackedBatch, sequences: Sequence[TokenSequence], actions: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Splits the results of a micro-batch's rows into those of its transitions, in their order in the rows."""
    at = 0
    for member in batch.members:
        for span in sequences[member].spans:
            size = span.action[1] - span.action[0] if actions else len(span.observation)
            yield span.transition, flat[at : at + size]
            at += size
    assert at == len(flat)


def selected_transitions(trajectories: Sequence[Trajectory], entropies: np.ndarray, config: TrainConfig) -> np.ndarray:
    """Returns bool [M]: the transitions that the run's rule selects for the world-model loss, among these.

    As in training, transitions that are not followed by an observation cannot be selected.
    """
    transitions = [t for trajectory in trajectories for t in trajectory.transitions]
    selected = np.zeros(len(transitions), dtype=bool)
    if not config.paw.enabled:
        return selected
    among = np.array([any(t.observation_mask) for t in transitions], dtype=bool)
    if config.paw.deduplicate:
        among = among & first_of_equals(transitions)
    numbers = np.flatnonzero(among)
    picked = select_transitions(entropies[numbers], config.paw.alpha, config.paw.selection, seed=(config.seed, 3, 0))
    selected[numbers[picked]] = True
    return selected


def view_episodes(
    trajectories: Sequence[Trajectory], before: Expectation | None, now: Expectation, chat: ChatFormat,
    config: TrainConfig,
) -> tuple[EpisodeView, ...]:  # fmt: skip
    """Returns the episodes as the page shows them. `now` and `before` were measured on the same trajectories."""
    selected = selected_transitions(trajectories, now.entropies, config)
    weights = np.zeros(len(trajectories))
    if config.paw.enabled and len(trajectories):
        returns = np.array([t.success_return for t in trajectories])
        groups = np.array([t.group for t in trajectories])
        paw = config.paw
        weights = group_lambdas(returns, groups, config.algo.success_reward, paw.lambda_0, paw.balance)
    views, number = [], 0
    for trajectory, weight in zip(trajectories, weights.tolist(), strict=True):
        turns = []
        for t in trajectory.transitions:
            texts = token_texts(chat.tokenizer, t.observation_ids)
            texts = [text for text, is_text in zip(texts, t.observation_mask, strict=True) if is_text]
            ours = now.probabilities[number].tolist()
            theirs = [None] * len(ours) if before is None else before.probabilities[number].tolist()
            tokens = tuple(ObservedToken(*one) for one in zip(texts, theirs, ours, strict=True))
            entropy = None if before is None else float(before.entropies[number])
            action = chat.decode(t.action_ids)
            turns.append(
                TurnView(
                    action, t.valid, t.reward, entropy, float(now.entropies[number]), bool(selected[number]), tokens
                )
            )
            number += 1
        outcome = "won" if trajectory.won else "ended by a limit" if trajectory.truncated else "lost"
        task = trajectory.task
        views.append(
            EpisodeView(
                task.task_id, task.task_type, trajectory.intro_text, outcome, trajectory.episode_return,
                trajectory.group, weight, tuple(turns),
            )
        )  # fmt: skip
    return tuple(views)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Returns the text of each token. Together they are the decoded text.

    Bytes of an incomplete character count for the token that completes it. Tokens are decoded after those before them,
    because some tokenizers omit the space at the beginning of a text.
    """
    texts: list[str] = []
    start, known = 0, ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[start:end]), skip_special_tokens=False)
        if text.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(known) :] if text.startswith(known) else tokenizer.decode([ids[end - 1]]))
        known = text
        if end - start >= _DECODE_WINDOW:
            start = end - 1
            known = tokenizer.decode(list(ids[start:end]), skip_special_tokens=False)
    return texts
