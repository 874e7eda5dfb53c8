"""Controls of the world-model loss: which targets take the place of the true ones, and random gradients."""

import copy
import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_records import update

from paw_fast.algorithms import world_model
from paw_fast.algorithms.base import make_algorithm
from paw_fast.config import algo_config, load_preset, validate
from paw_fast.errors import UserError
from paw_fast.kernels import WORLD_MODEL
from paw_fast.learner import Learner
from paw_fast.learner.loss_rows import build_tables
from paw_fast.learner.placebo import permute_targets, randomize_gradients, replace_targets, target_ids, with_target
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

VOCAB = 90


@pytest.fixture
def policy():
    return Policy(tiny.build_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, seed=2), None)


def config(layout="window", **paw):
    base = load_preset("tiny")
    return dataclasses.replace(
        base, layout=layout, paw=dataclasses.replace(base.paw, alpha=1.0, **paw),
        algo=dataclasses.replace(algo_config("grpo", base.algo), minibatches=1),
        optim=dataclasses.replace(base.optim, schedule="constant", learning_rate=1e-3),
    )  # fmt: skip


def turn(action, seen, prompt=(7, 8), markup=(5, 6), **more):
    mask = (False,) * len(markup) + (True,) * len(seen)
    return Transition(
        prompt, action, (-1.0,) * len(action), (*markup, *seen), mask, "c", "o", "s", 0.0, True, **more
    )  # fmt: skip


def episodes(groups=3, each=2, turns=3, seed=0):
    """Random turns in the window layout; every observation is another text, of 1 to 6 tokens."""
    rng = np.random.default_rng(seed)
    draw = lambda n: tuple(int(i) for i in rng.integers(20, VOCAB, n))  # noqa: E731
    out = []
    for number in range(groups * each):
        group = number // each
        made = tuple(turn(draw(2), (*draw(rng.integers(0, 6)), 10 + group), prompt=draw(4)) for _ in range(turns))
        won = number % each == 0
        out.append(Trajectory(Task(f"t{group}"), EpisodeId(0, group, number % each), made, 10.0 * won, 10.0 * won, won))
    return out


def replaced(learner, trajectories, step=0):
    """The batch and weights as they are, and with the targets that the learner's config wants."""
    batch = learner.make_batch(trajectories)
    weights = world_model.select(batch, learner.compute_token_stats(batch), learner.config, step)
    return batch, weights, *replace_targets(batch, weights, learner.config, step, learner.max_tokens)


# ------------------------------------------------------------------------------------------------- permutation


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 5))
def test_a_permutation_meets_its_own_labels_only_where_it_must(labels, seed):
    labels = np.unique(labels, return_inverse=True)[1]
    lengths = np.arange(len(labels)) % 4
    got = permute_targets(labels, labels, lengths, np.full(len(labels), 9), np.random.default_rng(seed))
    assert sorted(got) == list(range(len(labels)))
    # Those of the largest label beyond as many as there are others cannot get another label's.
    largest = np.bincount(labels).max()
    assert (labels[got] == labels).sum() == max(0, 2 * largest - len(labels))


def test_texts_and_lengths_count_after_labels():
    labels, texts = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    room, lengths = np.array([9, 9, 9, 9]), np.ones(4)
    for seed in range(20):  # only one exchange between the tasks changes every text
        got = permute_targets(labels, texts, lengths, room, np.random.default_rng(seed))
        assert got.tolist() == [3, 2, 1, 0]
    long = np.array([1, 8, 1, 1])
    for seed in range(20):
        got = permute_targets(np.arange(4), np.arange(4), long, np.array([2, 2, 9, 2]), np.random.default_rng(seed))
        assert got[2] == 1


def test_permutations_are_spread_evenly():
    drawn = Counter(
        tuple(permute_targets(np.arange(4), np.arange(4), np.ones(4), np.ones(4), np.random.default_rng(s)).tolist())
        for s in range(900)
    )
    assert len(drawn) == 9  # the derangements of four
    assert min(drawn.values()) > 60  # 100 expected, standard deviation 9.4


# ------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("target", ["shuffled", "other-task"])
def test_targets_are_permuted_and_all_else_stays(policy, target):
    learner = Learner(policy, None, config(target=target))
    batch, weights, changed, new_weights, share = replaced(learner, episodes())
    assert share == 1.0
    before, after = batch.transitions, changed.transitions
    assert Counter(map(target_ids, before)) == Counter(map(target_ids, after))
    for one, other in zip(before, after, strict=True):
        assert target_ids(one) != target_ids(other)
        assert (one.prompt_ids, one.action_ids, one.rollout_logprobs) == (
            other.prompt_ids, other.action_ids, other.rollout_logprobs,
        )  # fmt: skip
        assert other.observation_ids[:2] == (5, 6)  # the markup before the text
        if target == "other-task":
            assert target_ids(one)[-1] != target_ids(other)[-1]  # the last token says the task
    assert (new_weights.selected == weights.selected).all()
    assert (new_weights.lambdas == weights.lambdas).all()


def test_rows_hold_the_others_tokens_and_the_weights_of_their_place(policy):
    learner = Learner(policy, None, config(target="shuffled", balance="fixed", lambda_0=0.5))
    batch, weights, changed, new_weights, _ = replaced(learner, episodes())
    stats = learner.compute_token_stats(batch)
    tables = build_tables(changed.sequences, stats, None, new_weights)
    total = sum(len(target_ids(t)) for t in batch.transitions)
    found = world_model.token_weights(new_weights, changed.sequences, policy.device).numpy()
    for table, sequence, t in zip(tables, changed.sequences, changed.transitions, strict=True):
        assert set(table.kinds) == {WORLD_MODEL}
        assert tuple(sequence.ids[p] for p in table.positions) == target_ids(t)
        assert found[table.sources] == pytest.approx([0.5 / total] * len(table.positions))
    actual = build_tables(batch.sequences, stats, None, weights)
    assert sum(len(t.weights) for t in actual) == sum(len(t.weights) for t in tables)


def test_only_selected_transitions_take_part(policy):
    learner = Learner(policy, None, config(target="shuffled"))
    batch = learner.make_batch(episodes())
    selected = np.arange(18) % 3 != 0
    weights = world_model.WorldModelWeights(np.ones(6), selected, np.ones(18, dtype=bool))
    changed, _, _ = replace_targets(batch, weights, learner.config, 0)
    same = [a.observation_ids == b.observation_ids for a, b in zip(batch.transitions, changed.transitions, strict=True)]
    assert same == (~selected).tolist()


def test_the_draw_depends_on_seed_and_step_alone(policy):
    learner = Learner(policy, None, config(target="shuffled"))
    observed = lambda got: [t.observation_ids for t in got[2].transitions]  # noqa: E731
    first = observed(replaced(learner, episodes(), step=4))
    np.random.default_rng(0).random(100)
    torch.rand(100)
    assert observed(replaced(Learner(policy, None, learner.config), episodes(), step=4)) == first
    assert observed(replaced(learner, episodes(), step=5)) != first
    other = Learner(policy, None, dataclasses.replace(learner.config, seed=1))
    assert observed(replaced(other, episodes(), step=4)) != first


def test_a_task_of_more_than_half_loses_the_rest(policy):
    trajectories = episodes(groups=1, each=3) + episodes(groups=2, each=1, seed=5)[1:]  # 9 transitions against 3
    learner = Learner(policy, None, config(target="other-task"))
    _, weights, changed, new_weights, share = replaced(learner, trajectories)
    assert weights.selected.sum() == 12
    assert new_weights.selected.sum() == 6
    assert share == 1.0
    task = np.array([0] * 9 + [1] * 3)
    got = np.array([target_ids(t)[-1] - 10 for t in changed.transitions])
    assert (got != task)[new_weights.selected].all()
    (alone,) = episodes(groups=1, each=1)
    *_, nothing, share = replaced(learner, [alone])
    assert (nothing.selected.sum(), share) == (0, 0.0)


def test_a_text_of_more_than_half_keeps_itself_there(policy):
    turns = (*(turn((30,), (40, 41)) for _ in range(3)), turn((30,), (42,)))
    one = Trajectory(Task("t"), EpisodeId(0, 0, 0), turns, 0.0, 0.0, False)
    learner = Learner(policy, None, config(target="shuffled"))
    _, _, changed, weights, share = replaced(learner, [one])
    assert weights.selected.all()
    assert share == 0.5
    assert Counter(map(target_ids, changed.transitions)) == {(40, 41): 3, (42,): 1}


def test_a_target_is_cut_to_its_place_and_passages_move_with_it():
    here = turn((30,), (40,), markup=(5, 6, 7))
    there = turn((31,), (50, 51, 52, 53), markup=(5,), passages=((1, 3, "a"), (4, 5, "b")))
    got = with_target(here, there, room=100)
    assert got.observation_ids == (5, 6, 7, 50, 51, 52, 53)
    assert got.observation_mask == (False,) * 3 + (True,) * 4
    assert got.passages == ((3, 5, "a"), (6, 7, "b"))
    short = with_target(here, there, room=3)
    assert (short.observation_ids, short.passages) == ((5, 6, 7, 50, 51, 52), ((3, 5, "a"),))
    assert target_ids(with_target(here, there, room=-1)) == ()


def test_sequences_never_exceed_the_limit(policy):
    learner = Learner(policy, None, config(target="shuffled"), max_tokens=11)
    trajectories = [
        dataclasses.replace(t, transitions=tuple(
            dataclasses.replace(x, prompt_ids=x.prompt_ids[: max(1, 11 - 2 - len(x.observation_ids))])
            for x in t.transitions
        ))
        for t in episodes()
    ]  # fmt: skip
    assert max(len(q.ids) for q in learner.make_batch(trajectories).sequences) <= 11
    _, _, changed, _, _ = replaced(learner, trajectories)
    assert max(len(q.ids) for q in changed.sequences) <= 11


@pytest.mark.parametrize("target", ["shuffled", "other-task", "noise"])
def test_an_update_leaves_the_policys_part_as_it_is(policy, target):
    rows = {}
    for name in ("actual", target):
        learner = Learner(Policy(copy.deepcopy(policy.model), None), None, config(target=name))
        rows[name] = update(learner, learner.make_batch(episodes()))
    for key in ("policy/loss", "policy/clip_fraction", "wm/selected_share", "wm/lambda_mean"):
        assert rows[target][key] == pytest.approx(rows["actual"][key], abs=1e-7)
    assert ("wm/changed_target_share" in rows[target]) == (target != "noise")
    assert ("wm/grad_norm" in rows[target]) == (target == "noise")
    assert "wm/changed_target_share" not in rows["actual"]
    if target == "noise":
        assert rows[target]["wm/loss"] == pytest.approx(rows["actual"]["wm/loss"], abs=1e-6)


# ------------------------------------------------------------------------------------------------- noise


def gradients(policy, step_of, **paw):
    """The gradient of one optimizer step; `step_of` gives the credit."""
    learner = Learner(Policy(copy.deepcopy(policy.model), None), None, config(**paw))
    found = {}

    def keep():
        found.update({n: p.grad.clone() for n, p in learner.policy.model.named_parameters() if p.grad is not None})
        return 1.0, False  # not taken: the schedule stays where it is

    learner._step = keep
    batch = learner.make_batch(episodes())
    stats = learner.compute_token_stats(batch)
    credit = make_algorithm(learner.config).credit(batch, stats)
    credit = dataclasses.replace(credit, advantages=[step_of * a for a in credit.advantages])
    metrics = learner.update(batch, stats, credit, world_model.select(batch, stats, learner.config, 0), 0)
    return found, metrics


def test_noise_keeps_the_norm_of_every_parameter_and_not_its_direction(policy):
    true, _ = gradients(policy, 0.0)
    noise, metrics = gradients(policy, 0.0, target="noise")
    assert true.keys() == noise.keys()
    for name, gradient in true.items():
        assert float(noise[name].norm()) == pytest.approx(float(gradient.norm()), rel=1e-4)
    flat = lambda grads: torch.cat([g.flatten() for g in grads.values()])  # noqa: E731
    a, b = flat(true), flat(noise)
    assert abs(float(torch.dot(a, b) / a.norm() / b.norm())) < 0.1
    assert metrics["wm/grad_norm"] == pytest.approx(float(a.norm()), rel=1e-4)
    again, _ = gradients(policy, 0.0, target="noise")
    assert all(torch.equal(noise[name], again[name]) for name in noise)


def test_noise_is_added_to_the_policys_gradient(policy):
    alone, _ = gradients(policy, 1.0, enabled=False)
    only_noise, _ = gradients(policy, 0.0, target="noise")
    both, _ = gradients(policy, 1.0, target="noise")
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, alone[name] + only_noise[name], atol=1e-6, rtol=1e-4)


def test_random_directions_are_uniform_and_parameters_without_gradient_stay():
    weight, idle = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(2000):
        weight.grad = torch.tensor([2.0, 0.0, 0.0])
        assert randomize_gradients([weight, idle], generator) == 2.0
        drawn.append(weight.grad.clone())
    assert idle.grad is None
    stacked = torch.stack(drawn)
    assert stacked.norm(dim=1).tolist() == pytest.approx([2.0] * 2000, abs=1e-5)
    assert stacked.mean(0).abs().max() < 0.12  # standard error 2 / sqrt(3 * 2000) = 0.026
    assert (stacked.var(0) - 4 / 3).abs().max() < 0.15


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "trajectory", "target": "shuffled"}, "--paw.target shuffled and --layout trajectory: there an"),
        ({"layout": "trajectory", "target": "other-task"}, "say --layout window"),
        ({"target": "shuffled", "horizon": 2}, "--paw.target shuffled and --paw.horizon 2"),
    ],
)
def test_what_the_targets_do_not_go_with_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        validate(config(**changes))


def test_another_task_needs_another_group():
    c = config(target="other-task")
    validate(c)
    validate(config("trajectory", target="noise"))
    one = dataclasses.replace(c, rollout=dataclasses.replace(c.rollout, groups=1))
    with pytest.raises(UserError, match=r"--rollout\.groups 1: all episodes of a step are of one task"):
        validate(one)
