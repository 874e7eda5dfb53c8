"""What the episodes page shows is what training computes: probabilities, entropies, selection, lambda."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from make_records import update

from paw_fast.algorithms.world_model import select_transitions
from paw_fast.config import load_preset
from paw_fast.evaluation.episode_view import (
    episode_requests,
    measure_expectation,
    selected_transitions,
    token_texts,
    view_episodes,
)  # fmt: skip
from paw_fast.learner import packing
from paw_fast.learner.forward_backward import predict
from paw_fast.learner.learner import Learner
from paw_fast.learner.sequences import build_sequences
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.rollout.chat_format import ChatFormat
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

TEXTS = ["You see a mug 2, and naïve 谁 🙂.", "go to cabinet 12"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def policy(tokenizer):
    model = tiny.build_model(len(tokenizer), hidden=32, layers=2, heads=2, kv_heads=1, ffn=64, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return Policy(model, tokenizer)


def config(layout="trajectory", **paw):
    base = load_preset("tiny", "alfworld")
    return dataclasses.replace(base, layout=layout, token_budget=64, paw=dataclasses.replace(base.paw, **paw))


def episode(rng, group, won, turns=3):
    """Prompts that continue each other, as the trajectory layout wants them; the last turn has no observation."""
    transitions, prompt = [], tuple(rng.integers(5, 200, 4).tolist())
    for turn in range(turns):
        action = tuple(rng.integers(5, 200, rng.integers(1, 4)).tolist())
        seen = tuple(rng.integers(5, 200, 5).tolist()) if turn < turns - 1 else (7,)
        mask = (False, True, True, False, True) if turn < turns - 1 else (False,)
        transitions.append(
            Transition(prompt, action, (0.0,) * len(action), seen, mask, "look", "", "s", 10.0 * won, True)
        )
        prompt = prompt + action + seen
    return Trajectory(
        Task(f"t{group}"), EpisodeId(0, group, 0), tuple(transitions), 10.0 * won, 10.0 * won, won
    )  # fmt: skip


@pytest.fixture
def trajectories():
    rng = np.random.default_rng(0)
    return [episode(rng, group, won) for group, won in ((0, True), (0, False), (1, False), (1, False))]


@pytest.mark.parametrize("layout", ["trajectory", "window"])
def test_numbers_are_those_of_predict_and_of_the_learner(policy, trajectories, layout):
    c = config(layout)
    got = measure_expectation(policy, trajectories, c)
    # Each transition on its own, in a micro-batch of its own.
    for number, t in enumerate(t for trajectory in trajectories for t in trajectory.transitions):
        (sequence,) = build_sequences([Trajectory(Task("t"), EpisodeId(0, 0, 0), (t,), 0.0, 0.0, False)], "window")
        table = packing.observation_rows(sequence, [1.0])
        assert len(got.probabilities[number]) == len(table.positions) == sum(t.observation_mask)
        if len(table.positions):
            logprobs, _ = predict(policy, packing.pack([sequence], [table], [0], policy.device), 1000)
            assert got.probabilities[number] == pytest.approx(logprobs.exp().numpy(), rel=1e-4)
    learner = Learner(policy, None, c)
    stats = learner.compute_token_stats(learner.make_batch(trajectories))
    assert got.entropies == pytest.approx(stats.entropies, abs=1e-6)


def test_a_plain_forward_pass_gives_the_same(policy, trajectories):
    t = trajectories[0].transitions[1]
    ids = torch.tensor(t.prompt_ids + t.action_ids + t.observation_ids)
    with torch.no_grad():
        p = torch.softmax(policy.lm_head(policy.hidden(ids, torch.arange(len(ids)), (len(ids),))), -1)
    start = len(t.prompt_ids) + len(t.action_ids)
    expected = [float(p[start + i - 1, ids[start + i]]) for i in (1, 2, 4)]
    assert measure_expectation(policy, trajectories, config()).probabilities[1] == pytest.approx(expected, rel=1e-4)


PAW = [{}, {"selection": "lowest", "alpha": 0.5}, {"selection": "random"}, {"deduplicate": True}]


@pytest.mark.parametrize("paw", PAW)
def test_selection_and_lambda_are_those_of_the_learner(policy, trajectories, paw):
    c = config(**paw)
    learner = Learner(Policy(copy.deepcopy(policy.model), policy.tokenizer), None, c)
    batch = learner.make_batch(trajectories)
    stats = learner.compute_token_stats(batch)
    now = measure_expectation(policy, trajectories, c)
    views = view_episodes(trajectories, None, now, ChatFormat(policy.tokenizer), c)
    targets = [n for n, p in enumerate(now.probabilities) if len(p)]
    picked = select_transitions(stats.entropies[targets], c.paw.alpha, c.paw.selection, seed=(c.seed, 3, 0))
    chosen = np.flatnonzero(selected_transitions(trajectories, now, c))
    assert chosen.tolist() == np.array(targets)[picked].tolist()
    surprises = np.array([-one.mean() for one in stats.old_logprobs])
    assert now.surprises == pytest.approx(surprises, abs=1e-5)
    by_surprise = dataclasses.replace(c, paw=dataclasses.replace(c.paw, selection="surprise", deduplicate=False))
    picked = select_transitions(surprises[targets], c.paw.alpha)
    chosen_so = np.flatnonzero(selected_transitions(trajectories, now, by_surprise))
    assert chosen_so.tolist() == np.array(targets)[picked].tolist()
    metrics = update(learner, batch, stats)
    assert metrics["wm/selected_share"] == pytest.approx(len(chosen) / len(targets))
    weights = [one.world_model_weight for one in views]
    assert weights == [0.5, 0.5, 1.0, 1.0]
    assert metrics["wm/lambda_mean"] == pytest.approx(np.mean(weights))


def test_the_view_has_every_number_in_its_place(policy, trajectories):
    c, chat = config(), ChatFormat(policy.tokenizer)
    now = measure_expectation(policy, trajectories, c)
    before = dataclasses.replace(now, probabilities=[p / 2 for p in now.probabilities], entropies=now.entropies + 1)
    views = view_episodes(trajectories, before, now, chat, c)
    turns = [turn for one in views for turn in one.turns]
    assert [[token.now for token in turn.tokens] for turn in turns] == [p.tolist() for p in now.probabilities]
    assert all(token.before == token.now / 2 for turn in turns for token in turn.tokens)
    assert [turn.entropy_now for turn in turns] == now.entropies.tolist()
    assert [turn.entropy_before for turn in turns] == (now.entropies + 1).tolist()
    assert sum(turn.selected for turn in turns) == 6  # 0.75 of the 8 with an observation
    assert [one.outcome for one in views] == ["won", "lost", "lost", "lost"]
    off = view_episodes(trajectories, None, now, chat, config(enabled=False))
    assert {one.world_model_weight for one in off} == {0.0}
    assert not any(turn.selected for one in off for turn in one.turns)


@pytest.mark.parametrize("text", ["You see a mug 2, and naïve 谁 🙂.", " 谁谁谁 " * 9, "a", ""])
def test_token_texts_join_to_the_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids)


def test_requests_are_grouped_by_task():
    tasks = [Task(str(number)) for number in range(3)]
    requests = episode_requests(tasks, 5, 2, seed=1)
    assert [(one.episode_id.group, one.episode_id.index) for one in requests] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
    ]
    assert len({one.seed for one in requests}) == 5
    assert len({one.task.task_id for one in requests}) == 3
    assert len(episode_requests(tasks, 100, 2, seed=1)) == 6
