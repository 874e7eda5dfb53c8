"""An update or a pass in which memory runs out is repeated with smaller micro-batches, and nothing is counted twice."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from paw_fast.algorithms.base import Credit
from paw_fast.algorithms.world_model import WorldModelWeights
from paw_fast.config import algo_config, load_preset
from paw_fast.learner import Learner, learner
from paw_fast.learner import critic as critics
from paw_fast.learner.memory_guard import MIN_TOKENS, MemoryGuard
from paw_fast.models import tiny
from paw_fast.models.policy import Policy
from paw_fast.types import EpisodeId, Task, Trajectory, Transition

VOCAB = 90
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
]  # fmt: skip


def trajectories(count=16):
    rng = np.random.default_rng(4)
    draw = lambda low, high: tuple(int(i) for i in rng.integers(5, VOCAB, rng.integers(low, high)))  # noqa: E731
    out = []
    for number in range(count):
        prompt, turns = draw(40, 120), []
        for _ in range(3):
            action, observed = draw(1, 6), draw(20, 60)
            turns.append(
                Transition(
                    prompt, action, (-1.0,) * len(action), observed, (True,) * len(observed), "c", "o", "s", 0.0, True
                )
            )
            prompt = prompt + action + observed
        reward = float(number % 2)
        out.append(
            Trajectory(Task("t"), EpisodeId(0, number // 2, number % 2), tuple(turns), reward, reward, reward > 0)
        )
    return out


def run_update(monkeypatch, algorithm="grpo", backbone="own", fail=None):
    """The metrics and parameters after an update; `fail`: (module, function, number of its call, error)."""
    base = load_preset("tiny")
    config = dataclasses.replace(
        base, token_budget=1024, algo=dataclasses.replace(algo_config(algorithm), minibatches=2),
        critic=dataclasses.replace(base.critic, backbone=backbone, warmup_steps=0),
    )  # fmt: skip
    policy = Policy(tiny.build_model(VOCAB, hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, seed=1), None)
    torch.manual_seed(0)
    made = Learner(policy, Policy(copy.deepcopy(policy.model), None), config)
    batch = made.make_batch(trajectories())
    with monkeypatch.context() as patch:
        if fail is not None:
            home, name, number, error = fail
            original, calls = getattr(home, name), []

            def runs_out(*args, **more):
                calls.append(name)
                result = original(*args, **more)
                if len(calls) == number:
                    raise error
                return result

            patch.setattr(home, name, runs_out)
        stats = made.compute_token_stats(batch)
        actions = [len(t.action_ids) for x in batch.trajectories for t in x.transitions]
        advantages = [np.full(n, (-1.0) ** i, np.float32) for i, n in enumerate(actions)]
        targets = [np.full(n, 0.5, np.float32) for n in actions] if algorithm == "ppo" else None
        credit = Credit(advantages, np.ones(len(batch.trajectories), bool), targets)
        every = np.ones(len(actions), bool)
        weights = WorldModelWeights(np.full(len(batch.trajectories), 0.1), every, every)
        metrics = made.update(batch, stats, credit, weights, 0)
        if fail is not None:
            assert len(calls) > number
    return metrics, {n: p.detach().clone() for n, p in policy.model.named_parameters()}, made


@pytest.mark.parametrize(
    ("error", "name", "number"),
    [
        (ERRORS[0], "backward", 1), (ERRORS[1], "backward", 4),
        (ERRORS[2], "compute_token_stats", 1), (ERRORS[0], "compute_token_stats", 3),
    ],
)  # fmt: skip
def test_the_repeated_computation_gives_the_same(monkeypatch, capsys, error, name, number):
    metrics, parameters, undisturbed = run_update(monkeypatch)
    found, after, made = run_update(monkeypatch, fail=(learner, name, number, error))
    assert (undisturbed._memory.tokens, made._memory.tokens) == (1024, 512)
    assert made.chunk == undisturbed.chunk // 2
    assert "computing again with --token-budget 512" in capsys.readouterr().err
    # Counts and denominators are the same numbers; losses differ by the order of sums.
    assert found.keys() == metrics.keys()
    assert found["tokens"] == metrics["tokens"]
    for key, value in metrics.items():
        assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    for key, value in parameters.items():
        torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["own", "shared"])
def test_a_critics_update_too(monkeypatch, backbone):
    metrics, _, _ = run_update(monkeypatch, "ppo", backbone)
    name = "_weighted_loss"
    found, _, made = run_update(monkeypatch, "ppo", backbone, fail=(critics, name, 2, MemoryError()))
    assert made._memory.tokens == 512
    for key, value in metrics.items():
        assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_it_gives_up_at_the_smallest_budget():
    said, undone = [], []
    guard = MemoryGuard(MIN_TOKENS * 4, 3, said.append)

    def never():
        raise MemoryError

    with pytest.raises(MemoryError):
        guard.run(never, lambda: undone.append(1))
    assert (guard.tokens, guard.chunk, len(said), len(undone)) == (MIN_TOKENS, 1, 2, 2)


def test_other_errors_are_not_repeated():
    calls = []

    def wrong():
        calls.append(1)
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        MemoryGuard(1024, 64).run(wrong)
    assert calls == [1]


def test_weights_that_are_nan_stop_the_run(monkeypatch):
    from paw_fast.errors import UserError

    original = learner.backward

    def damaged(policy, *args, **more):
        with torch.no_grad():
            next(policy.model.parameters()).view(-1)[0] = float("nan")
        return original(policy, *args, **more)

    monkeypatch.setattr(learner, "backward", damaged)
    with pytest.raises(UserError, match=r"^step 1: the parameter \S+ contains NaN .* nothing of this step is kept"):
        run_update(monkeypatch)
